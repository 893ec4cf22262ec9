"""The parts of a prompt: a system prompt, turns, and an instruction around the question."""

import re
import textwrap
import unicodedata
from collections.abc import Callable
from typing import Any


_SYSTEM_ROLES = ("system", "developer")
# Invisible characters that web pages and spreadsheets leave behind: zero-width space, word joiner, byte order mark,
# and the non-breaking space.
_UNSEEN = {0x200B: None, 0x2060: None, 0xFEFF: None, 0xA0: " "}


def build_prompt(
    question: str | list[dict[str, Any]], instruction: str | None = None, system_prompt: str | None = None
) -> list[dict[str, Any]]:
    """
    Build the conversation that the policy gets: the system prompt, if there is one, and a user turn with the question,
    a line break, and the instruction. `pivottrace triage --instruction ... --system-prompt ...` builds its prompts
    with this function, so a training script that uses it gets the same prompts, byte for byte.

    Args:
        question (`str` or `list[dict]`):
            The bare question; or a conversation, whose last user turn gets the instruction.
        instruction (`str`, *optional*):
            Text that follows every question. It is not added if the question already begins or ends with it.
        system_prompt (`str`, *optional*):
            Text of the system message. A conversation that already begins with the same one is left as it is.

    Returns:
        `list[dict]`: a conversation in TRL's format.

    Raises:
        ValueError: if the conversation has another system prompt, or no user turn for the instruction.

    Example:
    ```python
    >>> build_prompt("What is 2+2?", "Put the answer in \\\\boxed{}.", "You are a mathematician.")
    [{'role': 'system', 'content': 'You are a mathematician.'},
     {'role': 'user', 'content': 'What is 2+2?\\nPut the answer in \\\\boxed{}.'}]
    ```
    """
    turns = [{"role": "user", "content": question}] if isinstance(question, str) else [*question]
    if instruction is not None:
        users = [place for place, turn in enumerate(turns) if turn.get("role") == "user"]
        if not users:
            raise ValueError(
                f"The conversation {str(turns)[:80]} has no user turn, to which `instruction` could be added. Add "
                "one, or leave the instruction out."
            )
        last = turns[users[-1]]
        turns[users[-1]] = {**last, "content": _with_instruction(last["content"], instruction)}
    if system_prompt is not None:
        above = [turn["content"] for turn in turns[:1] if turn.get("role") in _SYSTEM_ROLES]
        if not above:
            turns.insert(0, {"role": "system", "content": system_prompt})
        elif above != [system_prompt]:
            raise ValueError(
                f"A conversation has the system prompt {str(above[0])[:80]!r} already, and not "
                f"{system_prompt[:80]!r}. Leave `system_prompt` out, or take that message off with `dataset.map`."
            )
    return turns


def _with_instruction(content: Any, instruction: str) -> Any:
    take_off = without(instruction)
    if isinstance(content, str):
        return content if take_off(content) != content else f"{content}\n{instruction}"
    texts = [part["text"] for part in content or () if part.get("text")]
    if any(take_off(text) != text for text in texts):
        return content
    return [*(content or ()), {"type": "text", "text": f"\n{instruction}"}]


def without(instruction: str) -> Callable[[str], str]:
    """
    Make a function that removes an instruction from a text: at the beginning and the end, each time it is repeated,
    whatever its white space. A text without the instruction is returned unchanged.
    """
    words = _visible(instruction).split()
    if not words:
        raise ValueError(f"`instruction` is {instruction!r}, which is empty. Leave it out.")
    # The line break is removed too, but not the indentation of the next line.
    begin = re.compile(rf"\s*{_spaced(words)}(?:[^\S\n]*\n|[^\S\n]+|\Z)")
    # The end is matched backwards: searching forwards takes quadratic time if the instruction is repeated.
    end = re.compile(rf"\s*{_spaced([word[::-1] for word in reversed(words)])}(?!\S)")

    def take_off(text: str) -> str:
        whole = _with_plain_line_endings(_visible(text))
        left = whole[_length_of(begin, whole) :]
        left = left[: len(left) - _length_of(end, left[::-1])]
        return text if left == whole else left.rstrip()

    return take_off


def _spaced(words: list[str]) -> str:
    return r"\s+".join(map(re.escape, words))


def _length_of(pattern: re.Pattern[str], text: str) -> int:
    """Length of the text's beginning that consists of repetitions of a pattern."""
    length = 0
    while length < len(text) and (found := pattern.match(text, length)):
        length = found.end()
    return length


def asked(prompt: str | list[dict[str, Any]], take_off: Callable[[str], str] | None = None) -> Any:
    """
    The question of a prompt: its text, or that of its only user turn, or otherwise its turns as plain values. System
    messages, empty fields, and what [`normalised`] removes are left out. `take_off` removes an instruction.
    """
    if isinstance(prompt, str):
        return normalised(prompt if take_off is None else take_off(prompt))
    turns = [turn for turn in prompt if turn.get("role") not in _SYSTEM_ROLES] or prompt
    turns = [_asked_in(turn, take_off if turn.get("role") == "user" else None) for turn in turns]
    (first, *others) = turns
    is_plain = not others and first.keys() == {"role", "content"} and first["role"] == "user"
    return first["content"] if is_plain and isinstance(first["content"], str) else turns


def _asked_in(turn: dict[str, Any], take_off: Callable[[str], str] | None) -> dict[str, Any]:
    def plain(text: str) -> str:
        return normalised(text if take_off is None else take_off(text))

    content = turn.get("content")
    if isinstance(content, str):
        content = plain(content)
    elif content is not None:
        parts = [_filled(part) | ({"text": plain(part["text"])} if part.get("text") else {}) for part in content]
        content = [part for part in parts if part.get("type") != "text" or part.get("text")]
        if all(part.keys() == {"type", "text"} for part in content):
            content = "\n".join(part["text"] for part in content)
    return _filled({**turn, "content": content})


def _filled(value: Any) -> Any:
    """A value without empty fields: in a table, every message has the fields of all messages."""
    if isinstance(value, dict):
        return {key: _filled(item) for key, item in value.items() if item is not None}
    return [_filled(item) for item in value] if isinstance(value, list) else value


def normalised(text: str) -> str:
    """
    Remove what does not distinguish questions: the kind of line endings, common indentation, blanks at the end of
    lines, blank lines around the text, different encodings of an accent, and invisible characters. Spacing within
    lines and relative indentation are kept.
    """
    text = _with_plain_line_endings(_visible(text))
    if "\n" not in text:
        return text.strip()
    text = "\n".join([line.rstrip() for line in text.split("\n")]).strip("\n")
    return textwrap.dedent(text) if text[:1].isspace() else text


def _visible(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text).translate(_UNSEEN)


def _with_plain_line_endings(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def prompt_text(prompt: str | list[dict[str, Any]]) -> str:
    """Text of a prompt for people: the last user message of a conversation, or the prompt itself."""
    if isinstance(prompt, str):
        return prompt
    content = ([turn for turn in prompt if turn.get("role") == "user"] or prompt)[-1]["content"]
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text") or f"[{part.get('type')}]" for part in content or ())
