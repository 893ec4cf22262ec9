"""
Run the script of README.md as a reader pastes it, and write what it prints below it.

    python scripts/readme_output.py
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from textwrap import wrap


README = Path(__file__).parent.parent / "README.md"


def script_of(text: str) -> str:
    return re.findall(r"\[start:script\] -->\n```python\n(.*?)```", text, re.DOTALL)[0]


def shown(printed: str) -> list[str]:
    """The lines of this package: without progress bars and the dictionaries that TRL logs."""
    lines = [line.rstrip() for line in printed.splitlines()]
    kept = [line for line in lines if line and not re.match(r"\{'|Generating|Tracing|\W*\d+%", line)]
    return [part for line in kept for part in (wrap(line, 100) if len(line) > 100 else [line])]


def main() -> None:
    text = README.read_text()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", script_of(text)]
        done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    output = "\n".join(shown(done.stdout))
    README.write_text(
        re.sub(
            r"(?<=\[start:output\] -->\n)```text\n.*?```", lambda _: f"```text\n{output}\n```", text, flags=re.DOTALL
        )
    )


if __name__ == "__main__":
    main()
