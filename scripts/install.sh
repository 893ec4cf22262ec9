#!/usr/bin/env bash
# Make a virtual environment with the package and what its tests need, or with a wheel: install.sh PYTHON VENV [WHEEL]
# On Linux without an NVIDIA GPU it never takes the build of torch that brings gigabytes of CUDA libraries along.
set -euo pipefail
python=$1
venv=$2
wheel=${3:-}
torch=2.13.0  # the release that the tests run on; setup.py accepts others

say() { echo "install.sh: $*" >&2; }

"$python" -c 'import sys; v = sys.version_info; sys.exit(not (3, 10) <= v < (3, 14))' || {
    say "$("$python" --version) is not supported, use Python 3.10 to 3.13: make PYTHON=python3.12 ..."
    exit 1
}
"$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip --quiet --disable-pip-version-check)

# torch comes first, so that the package's own requirement finds it installed.
if version=$("$venv/bin/python" -c 'import torch; print(torch.__version__)' 2>/dev/null); then
    say "torch $version is there already, and stays."
elif [ "$(uname -s)" != Linux ] || nvidia-smi >/dev/null 2>&1; then
    say "torch $torch, the default build of this platform."
    "${pip[@]}" install "torch==$torch"
# A CPU build that pip is configured to find. There is none on PyPI itself: then this fails without a download.
elif "${pip[@]}" install "torch==$torch+cpu" 2>/dev/null; then
    say "torch $torch, the CPU build that pip finds."
else
    say "torch $torch, the CPU build that uv chooses; pip finds none."
    "${pip[@]}" install uv
    "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --torch-backend cpu "torch==$torch" || {
        say "no GPU here, and no CPU build of torch $torch in reach. Put a torch of your choice into the environment and"
        say "run the same command again, for example the default build, several GB: $venv/bin/pip install torch==$torch"
        exit 1
    }
fi
if [ -n "$wheel" ]; then
    "${pip[@]}" install "$wheel"
    exit
fi
"${pip[@]}" install -e ".[test]"
# A peer whose scores the tests compare with ours. A few files of it are read; most of what it asks for is not needed.
"${pip[@]}" install --no-deps "lm-polygraph==0.7.0"
