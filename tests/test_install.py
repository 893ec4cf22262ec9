"""Which build of torch `scripts/install.sh` takes, with stand-ins for everything that would install something."""

import os
import subprocess
from pathlib import Path

import pytest


SCRIPT = Path(__file__).parent.parent / "scripts" / "install.sh"
# The interpreter of the new environment. It writes down what it is asked for, and does what $WORLD says.
PYTHON = """#!/bin/sh
case "$*" in
    "-m venv "*) exit 0 ;;
    *"import torch"*) case "$WORLD" in *installed*) echo 2.14.1 ;; *) exit 1 ;; esac ;;
    *"import sys"*) exit 0 ;;
    *"+cpu"*) echo "pip $*" >> "$LOG"; case "$WORLD" in *configured*) ;; *) echo "no matching" >&2; exit 1 ;; esac ;;
    *) echo "pip $*" >> "$LOG" ;;
esac
"""
UV = """#!/bin/sh
echo "uv $*" >> "$LOG"
case "$WORLD" in *unreachable*) echo "cannot connect" >&2; exit 2 ;; esac
"""
CPU_BUILD, DEFAULT_BUILD = "install torch==2.13.0+cpu", "install torch==2.13.0"
UV_BUILD = "pip install --quiet --python {venv}/bin/python --torch-backend cpu torch==2.13.0"


def install(folder: Path, world: str, system: str = "Linux") -> tuple[int, list[str], str]:
    """Run the script; returns its exit status, what was installed, and what it said."""
    venv = folder / "venv"
    has_gpu = f"#!/bin/sh\nexit {0 if 'gpu' in world else 9}\n"
    commands = {"python": PYTHON, "uname": f"#!/bin/sh\necho {system}\n", "nvidia-smi": has_gpu}
    for path, text in [(venv / "bin" / "python", PYTHON), (venv / "bin" / "uv", UV)] + [
        (folder / "bin" / name, text) for name, text in commands.items()
    ]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    log = folder / "log"
    log.touch()
    environment = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "WORLD": world, "LOG": str(log)}
    done = subprocess.run(
        ["bash", str(SCRIPT), "python", str(venv)], env=environment, cwd=folder, capture_output=True, text=True
    )
    quiet = "pip -m pip --quiet --disable-pip-version-check "
    return (
        done.returncode,
        [line.replace(quiet, "").replace("uv ", "", 1) for line in log.read_text().splitlines()],
        done.stderr,
    )


@pytest.mark.parametrize(
    ("world", "system", "taken", "said"),
    [
        ("configured", "Linux", [CPU_BUILD], "the CPU build that pip finds"),
        ("ordinary", "Linux", [CPU_BUILD, "install uv", UV_BUILD], "the CPU build that uv chooses"),
        ("gpu", "Linux", [DEFAULT_BUILD], "the default build of this platform"),
        ("ordinary", "Darwin", [DEFAULT_BUILD], "the default build of this platform"),
        ("installed", "Linux", [], "torch 2.14.1 is there already, and stays"),
    ],
)
def test_the_build_of_torch(world, system, taken, said, tmp_path):
    status, installed, lines = install(tmp_path, world, system)
    expected = [line.format(venv=tmp_path / "venv") for line in taken]
    assert installed == [*expected, "install -e .[test]", "install --no-deps lm-polygraph==0.7.0"]
    assert status == 0 and said in lines and len(lines.splitlines()) == 1


def test_without_any_cpu_build_nothing_is_installed(tmp_path):
    status, installed, lines = install(tmp_path, "unreachable")
    assert status == 1 and not any("default" in line or ".[test]" in line for line in installed)
    assert DEFAULT_BUILD not in installed
    assert f"{tmp_path / 'venv'}/bin/pip install torch==2.13.0" in lines


def test_an_unsupported_python_is_named(tmp_path):
    (tmp_path / "python").write_text("#!/bin/sh\ncase $1 in --version) echo Python 3.9.1 ;; *) exit 1 ;; esac\n")
    (tmp_path / "python").chmod(0o755)
    done = subprocess.run(
        ["bash", str(SCRIPT), str(tmp_path / "python"), str(tmp_path / "venv")], capture_output=True, text=True
    )
    assert done.returncode == 1 and "Python 3.9.1 is not supported" in done.stderr
    assert not (tmp_path / "venv").exists()
