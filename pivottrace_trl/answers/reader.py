"""
Reads answers in a separate process that can be killed, because some expressions never finish.

`python -m pivottrace_trl.answers.reader` is that process: a line of JSON in, a line of JSON out.
"""

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict
from queue import Empty, Queue
from typing import Any

from .base import Reading
from .mathematics import MAX_RESPONSE_LENGTH, are_equivalent, extract_answer, is_correct, read_answer


_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "read": lambda text: asdict(read_answer(text)),
    "extract": extract_answer,
    "are_equivalent": lambda pair: are_equivalent(*pair),
    "is_correct": lambda pair: is_correct(*pair),
}
# The process must have finished its imports by then.
_START_SECONDS = 120.0
_READY = "ready\n"
# Bytes of address space for the process. It needs 0.2 GiB; a power of powers would take all memory.
_MAX_MEMORY = 2 * 2**30
# Characters of a person's answer, with the work before it. Longer texts are not worth sending.
_MAX_TYPED_LENGTH = 100_000
# Kept alive, as garbage collection would close their streams.
_PROCESSES_OF_PARENTS: list[subprocess.Popen[str]] = []


class AnswerReader:
    """
    Reads and compares answers in mathematics, with limits on time and memory. Can be called from any thread. Use it as
    a context manager.

    Args:
        timeout (`float`, *optional*, defaults to `5.0`):
            Seconds per call, after which the process is killed. The next call starts another.
    """

    def __init__(self, timeout: float = 5.0):
        self._timeout = timeout
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._lines: Queue[str] = Queue()
        self._owner = os.getpid()

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
            ValueError: if the text is not an answer, or reading it does not finish in time.
            RuntimeError: if the process does not start.
        """
        if len(text) > _MAX_TYPED_LENGTH:
            raise ValueError(f"the answer has {len(text):,} characters, more than {_MAX_TYPED_LENGTH:,}")
        return Reading(**self._call("read", text))

    def extract(self, response: str) -> str | None:
        """The final answer of a response; `None` if it has none, or reading it does not finish in time."""
        try:
            return self._call("extract", response[-MAX_RESPONSE_LENGTH:])
        except ValueError:
            return None

    def are_equivalent(self, first: str, second: str) -> bool:
        """Whether the second answer is right when the first is the label; `False` also if the time runs out."""
        try:
            return self._call("are_equivalent", [first, second])
        except ValueError:
            return False

    def is_correct(self, response: str, label: str) -> bool:
        """Whether the final answer of a response equals the label; `False` also if the time runs out."""
        try:
            return self._call("is_correct", [response[-MAX_RESPONSE_LENGTH:], label])
        except ValueError:
            return False

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._kill()

    def _call(self, function: str, argument: Any) -> Any:
        with self._lock:
            if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
                self._start()
            assert self._process is not None and self._process.stdin is not None
            try:
                self._process.stdin.write(json.dumps([function, argument]) + "\n")
                self._process.stdin.flush()
                line = self._lines.get(timeout=self._timeout)
            except (Empty, OSError):  # it hangs, or has just died
                line = ""
            except BaseException:  # the next call must not get the answer to this one
                self._kill()
                raise
            if not line:
                self._kill()
        if not line:
            raise ValueError(f"it cannot be read within {self._timeout:g} seconds")
        result = json.loads(line)
        if "error" in result:
            raise ValueError(result["error"])
        return result["value"]

    def _start(self) -> None:
        self._kill()
        # The child finds the same modules as this process, whatever the working directory.
        program = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; main()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        self._owner = os.getpid()
        lines: Queue[str] = Queue()
        self._lines = lines
        stream = self._process.stdout
        assert stream is not None

        def forward() -> None:
            for line in stream:
                lines.put(line)
            lines.put("")  # it died

        threading.Thread(target=forward, daemon=True).start()
        try:
            is_ready = lines.get(timeout=_START_SECONDS) == _READY
        except Empty:
            is_ready = False
        except BaseException:
            self._kill()
            raise
        if not is_ready:
            self._kill()
            raise RuntimeError(
                f"The process that reads answers did not start within {_START_SECONDS:g} seconds. "
                f"`echo | {sys.executable} -m {__name__}` shows why."
            )

    def _kill(self) -> None:
        if self._process is not None and self._owner != os.getpid():
            # This process is a fork. The reader belongs to the parent, and so does the lock on its streams, which
            # would never be released here.
            _PROCESSES_OF_PARENTS.append(self._process)
            self._process = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    stream.close()
            self._process = None


# Shared by all callers that do not need a process of their own. It starts with the first call.
default_reader = AnswerReader()
atexit.register(default_reader.close)


def main() -> None:
    """Answer requests until the input ends."""
    sys.stdin.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    if sys.platform == "linux":
        import resource  # does not exist on Windows

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        if hard == resource.RLIM_INFINITY or hard > _MAX_MEMORY:
            resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY, hard))
    sys.stdout.write(_READY)
    sys.stdout.flush()
    for line in sys.stdin:
        function, argument = json.loads(line)
        try:
            result = {"value": _FUNCTIONS[function](argument)}
        except Exception as error:  # a parser may raise anything on hostile input: the answer is unreadable
            result = {"error": str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
