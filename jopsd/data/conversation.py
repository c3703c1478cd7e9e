"""Conversations in a row: lists of turns, as OpenAI and TRL write them (role, content) or ShareGPT (from, value)."""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

# Names of who speaks, in lower case, and what a chat template calls them.
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
_TOOLS = ("tool_calls", "function_call", "tool_call_id")


class ConversationError(ValueError):
    """A conversation that cannot be read whole."""


class Conversation(NamedTuple):
    """A conversation by its parts.

    system: what stands before the first turn, or None. history: (role, text) of the turns before the user's last.
    problem: the user's last turn; "" where there is none. reply: the assistant's turn after it, or None.
    """

    system: str | None
    history: tuple[tuple[str, str], ...]
    problem: str
    reply: str | None


def is_conversation(value: Any) -> bool:
    """Whether a cell is a list of turns, or the JSON text of one."""
    value = _decoded(value)
    return isinstance(value, list | tuple) and bool(value) and all(map(_is_turn, value))


def read_conversation(value: Any) -> Conversation:
    """The parts of a conversation. Nothing of it is left out.

    Raises:
      ConversationError: a turn that cannot be read (of an unknown speaker, with calls of tools, of an image), or an
        order in which the user's last turn is not the last but for one reply.
    """
    turns = [_turn(number, turn) for number, turn in enumerate(_decoded(value))]
    system = []
    while turns and turns[0][0] == "system":
        system.append(turns.pop(0)[1])
    reply = turns.pop()[1] if turns and turns[-1][0] == "assistant" else None
    if turns and turns[-1][0] != "user":
        number, role = len(system) + len(turns) - 1, turns[-1][0]
        raise ConversationError(f"turn {number} is the {role}'s, where the user's last is due")
    problem = turns.pop()[1] if turns else ""
    return Conversation("\n\n".join(text for text in system if text.strip()) or None, tuple(turns), problem, reply)


def text_of(content: Any) -> str | None:
    """The text of a turn: as it is, or of its parts together; None for anything else than text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        return None
    parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
    return "".join(parts) if parts and all(isinstance(part, str) for part in parts) else None


def _is_turn(value: Any) -> bool:
    return isinstance(value, Mapping) and ("role" in value or {"from", "value"} <= value.keys())


def _turn(number: int, turn: Mapping[str, Any]) -> tuple[str, str]:
    speaker = turn.get("role", turn.get("from"))
    role = ROLES.get(str(speaker).lower())
    if role is None:
        raise ConversationError(f"turn {number} is of {speaker!r}; known are {', '.join(ROLES)}")
    if used := [key for key in _TOOLS if turn.get(key)]:
        raise ConversationError(f"turn {number} has {used[0]}, which is not rendered")
    text = text_of(turn.get("content", turn.get("value")))
    if text is None:
        raise ConversationError(f"turn {number} ({speaker}) has no text")
    return role, text


def _decoded(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value
