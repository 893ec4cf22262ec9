"""
Which build of torch `scripts/install.sh` takes, with stand-ins for everything that would install something; and what
is in the sdist and the wheel.
"""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import pivottrace_trl


ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "install.sh"
BUILT_FROM = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
TOLD = ("CHANGELOG.md", "CITATION.cff", "SECURITY.md")
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


def install(folder: Path, world: str, system: str = "Linux", *wheel: str) -> tuple[int, list[str], str]:
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
        ["bash", str(SCRIPT), "python", str(venv), *wheel], env=environment, cwd=folder, capture_output=True, text=True
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


def test_a_wheel_is_installed_without_what_tests_need(tmp_path):
    _, installed, _ = install(tmp_path, "configured", "Linux", "dist/package.whl")
    assert installed == [CPU_BUILD, "install dist/package.whl"]


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


def build(kind: str, source: Path, folder: Path) -> Path:
    """What `python -m build` does, but with the setuptools that is here."""
    code = f"from setuptools import build_meta; print(build_meta.build_{kind}({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=True)
    return folder / done.stdout.splitlines()[-1]


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in (*BUILT_FROM, *TOLD):
        shutil.copy(ROOT / name, source)
    shutil.copytree(
        ROOT / "pivottrace_trl", source / "pivottrace_trl", ignore=shutil.ignore_patterns("__pycache__", ".*")
    )
    package = {str(path.relative_to(source)) for path in (source / "pivottrace_trl").rglob("*") if path.is_file()}
    (source / "tests").mkdir()
    (source / "tests" / "test_something.py").touch()

    sdist = build("sdist", source, tmp_path)
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
        root = archive.getnames()[0]
        if hasattr(tarfile, "data_filter"):  # in Python 3.10 and 3.11 since a later patch
            archive.extractall(tmp_path, filter="data")
        else:
            archive.extractall(tmp_path)
    made = {name for name in names if name in ("PKG-INFO", "setup.cfg") or ".egg-info/" in name}
    assert names - made == package | {*BUILT_FROM, *TOLD}

    wheel = build("wheel", tmp_path / root, tmp_path)  # from the sdist, as it is done for an upload
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        about = Parser().parsestr(archive.read(metadata).decode())
        (commands,) = [archive.read(name).decode() for name in names if name.endswith("/entry_points.txt")]
    folder = metadata.partition("/")[0] + "/"
    assert {name for name in names if not name.startswith(folder)} == package
    assert f"{folder}licenses/LICENSE" in names
    assert about["Version"] == pivottrace_trl.__version__ and "pivottrace = pivottrace_trl.cli:main" in commands
    assert (
        not re.findall(r"\]\((?!https?:|#)", about.get_payload()) and "/raw/main/docs/images/" in about.get_payload()
    )
    assert max(path.stat().st_size for path in (sdist, wheel)) < 5_000_000
