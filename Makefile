# `make demo` and `make test` do everything on a fresh machine, the environment included.
PYTHON ?= python3
VENV ?= .venv
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: demo test test-all lint clean

demo: $(VENV)/installed
	$(VENV)/bin/pivottrace demo

test: lint
	$(VENV)/bin/python -m pytest -m "not slow"

test-all: lint
	$(VENV)/bin/python -m pytest

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(VENV)/installed: setup.py scripts/install.sh
	bash scripts/install.sh $(PYTHON) $(VENV)
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
