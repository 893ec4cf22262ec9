# `make demo` and `make test` do everything on a fresh machine, the environment included.
PYTHON ?= python3
VENV ?= .venv
OLDEST ?= .venv-oldest
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false
# One process a core, each with one torch thread; a process of the suite takes up to 2 GB.
PYTEST = python -m pytest --numprocesses logical --maxprocesses 4

.PHONY: demo test test-oldest test-all bench docs lint check-release clean

demo: $(VENV)/installed
	$(VENV)/bin/pivottrace demo

test: lint
	$(VENV)/bin/$(PYTEST) -m "not slow"

# The suite on the oldest versions that setup.py allows (torch excepted). Their numpy needs Python 3.12 or older.
test-oldest: $(OLDEST)/installed
	$(OLDEST)/bin/$(PYTEST) -m "not slow"

test-all: lint
	$(VENV)/bin/$(PYTEST)

# Half an hour on two cores. MODEL and DATASET take the triage benchmark from random weights to a real model.
bench: $(VENV)/installed
	$(VENV)/bin/python benchmarks/tracing.py --dtype float32 --eager-up-to 1024 --output bench/tracing-float32.json
	$(VENV)/bin/python benchmarks/tracing.py --dtype bfloat16 --output bench/tracing-bfloat16.json
	$(VENV)/bin/python benchmarks/formulations.py --output bench/formulations.json
	$(VENV)/bin/python benchmarks/triage_scale.py --output bench/triage_scale.json
	$(VENV)/bin/python benchmarks/labels_scale.py --output bench/labels_scale.json
	$(VENV)/bin/python benchmarks/grpo_step.py --output bench/grpo_step.json
	$(VENV)/bin/python benchmarks/triage_pool.py $(if $(MODEL),--model $(MODEL) --dataset $(DATASET)) \
		--output bench/triage_pool.json

# The site, in site/. `strict` is set in mkdocs.yml: a dead link is an error.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Sdist and wheel, in dist/, and the demo from the wheel with each of these interpreters.
PYTHONS ?= python3.10 python3.11 python3.12 python3.13
check-release:
	bash scripts/check_release.sh $(PYTHONS)

$(VENV)/installed: setup.py scripts/install.sh
	bash scripts/install.sh $(PYTHON) $(VENV)
	touch $@

$(OLDEST)/installed: setup.py scripts/install.sh scripts/oldest.py
	mkdir -p $(OLDEST)
	$(PYTHON) scripts/oldest.py > $(OLDEST)/constraints.txt
	PIP_CONSTRAINT=$(OLDEST)/constraints.txt bash scripts/install.sh $(PYTHON) $(OLDEST)
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) build dist site *.egg-info
