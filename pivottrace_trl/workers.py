"""
Reading answers in a process of its own, which can be killed: there is mathematics that never ends.

As a program, `python -m pivottrace_trl.workers`, it is that process: a line of JSON in, a line of JSON out.
"""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from queue import Empty, Queue
from typing import Any

from .answers import Reading, are_equivalent, is_correct, read_answer


_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "read": lambda text: asdict(read_answer(text)),
    "are_equivalent": lambda pair: are_equivalent(*pair),
    "is_correct": lambda pair: is_correct(*pair),
}
# The first call waits for the imports as well.
_START_SECONDS = 60.0


class AnswerReader:
    """
    [`read_answer`], [`are_equivalent`] and [`is_correct`] with a limit on time, from any thread. Use it as a context
    manager.

    Args:
        timeout (`float`, *optional*, defaults to `5.0`):
            Seconds after which the process is killed; the next call starts another.
    """

    def __init__(self, timeout: float = 5.0):
        self._timeout = timeout
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._lines: Queue[str] = Queue()

    def __enter__(self) -> "AnswerReader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def read(self, text: str) -> Reading:
        """
        Check and normalise what a person typed.

        Args:
            text (`str`): the answer.

        Returns:
            [`Reading`]

        Raises:
            ValueError: if nothing can be read in it, or not in time.
        """
        return Reading(**self._call("read", text))

    def are_equivalent(self, first: str, second: str) -> bool:
        """Whether two answers mean the same; `False` if that cannot be told in time."""
        if first == second:
            return True
        try:
            return self._call("are_equivalent", [first, second])
        except ValueError:
            return False

    def is_correct(self, response: str, label: str) -> bool:
        """Whether the final answer of a response equals the label; `False` if that cannot be told in time."""
        try:
            return self._call("is_correct", [response, label])
        except ValueError:
            return False

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._kill()

    def _call(self, function: str, argument: Any) -> Any:
        with self._lock:
            is_new = self._process is None or self._process.poll() is not None
            if is_new:
                self._start()
            assert self._process is not None and self._process.stdin is not None
            try:
                self._process.stdin.write(json.dumps([function, argument]) + "\n")
                self._process.stdin.flush()
                line = self._lines.get(timeout=self._timeout + (_START_SECONDS if is_new else 0.0))
            except (Empty, OSError):  # it hangs, or died in this moment
                line = ""
            if not line:
                self._kill()
        if not line:
            raise ValueError(f"it cannot be read in {self._timeout:g} seconds")
        result = json.loads(line)
        if "error" in result:
            raise ValueError(result["error"])
        return result["value"]

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        lines: Queue[str] = Queue()
        self._lines = lines
        stream = self._process.stdout
        assert stream is not None

        def forward() -> None:
            for line in stream:
                lines.put(line)
            lines.put("")  # it died

        threading.Thread(target=forward, daemon=True).start()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()
            self._process = None


def main() -> None:
    """Answer requests until the input ends."""
    sys.stdin.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    for line in sys.stdin:
        function, argument = json.loads(line)
        try:
            result = {"value": _FUNCTIONS[function](argument)}
        except Exception as error:  # whatever a parser may raise on hostile input is an unreadable answer
            result = {"error": str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
