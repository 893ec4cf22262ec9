"""What a prompt is made of: a system prompt, turns, an instruction around the question."""

import re
import textwrap
import unicodedata
from collections.abc import Callable
from typing import Any


_SYSTEM_ROLES = ("system", "developer")
# What nobody sees, and web pages and spreadsheets leave behind: zero-width space, word joiner, byte order mark, and a
# space that does not break.
_UNSEEN = {0x200B: None, 0x2060: None, 0xFEFF: None, 0xA0: " "}


def build_prompt(
    question: str | list[dict[str, Any]], instruction: str | None = None, system_prompt: str | None = None
) -> list[dict[str, Any]]:
    """
    The conversation that a policy is asked: the system prompt if there is one, and a user turn that is the question, a
    line break, and the instruction. `pivottrace triage --instruction ... --system-prompt ...` builds its prompts so; a
    training script that does the same gets the same prompts, byte for byte.

    Args:
        question (`str` or `list[dict]`):
            The bare question; or a conversation, whose last user turn gets the instruction.
        instruction (`str`, *optional*):
            What every prompt says beside its question. It is not added where the question begins or ends with it.
        system_prompt (`str`, *optional*):
            Text of a system message that stands first. A conversation that begins with the same one stays as it is.

    Returns:
        `list[dict]`: a conversation as TRL has it.

    Raises:
        ValueError: for a conversation that has another system prompt, or no user turn for the instruction.

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
    Takes an instruction off a text: at its beginning and its end, as often as it stands there, whatever the white
    space in it. A text that has none comes back as it is.
    """
    words = _visible(instruction).split()
    if not words:
        raise ValueError(f"`instruction` is {instruction!r}, which is empty. Leave it out.")
    # The line break goes with it, and not the indentation of the line after.
    begin = re.compile(rf"\s*{_spaced(words)}(?:[^\S\n]*\n|[^\S\n]+|\Z)")
    # The end is read backwards: a search for it takes quadratic time where an instruction is repeated.
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
    """How far a pattern reaches from the beginning of a text, as often as it stands there."""
    length = 0
    while length < len(text) and (found := pattern.match(text, length)):
        length = found.end()
    return length


def asked(prompt: str | list[dict[str, Any]], take_off: Callable[[str], str] | None = None) -> Any:
    """
    What a prompt asks: its text, or that of its only user turn; else its turns as plain values. System messages are no
    part of it, nor are fields without a value and what [`normalised`] leaves out; `take_off` takes off an instruction.
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
    """Without fields that hold nothing: in a table, every message has the fields of all."""
    if isinstance(value, dict):
        return {key: _filled(item) for key, item in value.items() if item is not None}
    return [_filled(item) for item in value] if isinstance(value, list) else value


def normalised(text: str) -> str:
    """
    A text as far as it tells questions apart. Inner spacing and relative indentation count; line endings, common
    indentation, blanks at the end of lines, blank lines around, ways to write an accent, and what nobody sees do not.
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
    """Text of a prompt for people: the last user message of a conversation, or the plain prompt."""
    if isinstance(prompt, str):
        return prompt
    content = ([turn for turn in prompt if turn.get("role") == "user"] or prompt)[-1]["content"]
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text") or f"[{part.get('type')}]" for part in content or ())
