"""Messages to prompt token ids through a tokenizer's own chat template."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jopsd.errors import one_line
from jopsd.models.tokenizer import control_tokens, spelled_ids
from jopsd.models.turns import generation_fault

Message = Mapping[str, str]

_OPEN_THINK = re.compile(r"<think\s*>\s*\Z")
_CLOSED_THINK = re.compile(r"\A.*</think\s*>", re.DOTALL)
_PRIVATE = (0xE000, 0xF8FF)  # characters without a meaning, which stand for control tokens while a template runs


class ChatError(ValueError):
    """A conversation that a chat template or a tokenizer cannot render.

    reason: the fault in a few words, under which rows that are left out are counted.
    """

    def __init__(self, tokenizer: Any, reason: str, detail: str, fix: str = ""):
        self.reason = reason
        name = getattr(tokenizer, "name_or_path", "") or "this tokenizer"
        super().__init__(f"the chat template of {name} {detail}{f'; fix: {fix}' if fix else ''}")


def require_chat_template(tokenizer: Any) -> None:
    """Raise ValueError, with the fix, if the tokenizer has no chat template."""
    if getattr(tokenizer, "chat_template", None):
        return
    name = getattr(tokenizer, "name_or_path", "") or "this tokenizer"
    raise ValueError(
        f"{name} has no chat template, so prompts cannot be rendered; fix: use the instruct model's tokenizer, or set "
        "tokenizer.chat_template and tokenizer.save_pretrained(directory), which writes chat_template.jinja"
    )


def check_chat_template(tokenizer: Any) -> None:
    """Raise ValueError, with the fix, if there is no chat template or its prompts do not open the assistant's turn."""
    require_chat_template(tokenizer)
    if fault := generation_fault(tokenizer):
        raise ChatError(tokenizer, "no generation prompt", fault)


def close_open_think(text: str) -> str:
    """Close a think tag left open at the very end of a prompt, so that the model answers without thinking.

    DeepSeek-R1 and Olmo-Think templates end in ``<think>`` whatever the flag says; text that does not end in an open
    tag is returned unchanged. The rule is PW-OPSD's (student prompts only).
    """
    return text + "</think>\n\n" if _OPEN_THINK.search(text) else text


def render_text(
    tokenizer: Any, messages: Sequence[Message], thinking: bool | None, prefill: str = "", close_think: bool = False
) -> str:
    """The prompt as text, ending where the model's own words begin.

    ``thinking`` is passed to the template as ``enable_thinking``; None does not pass it. ``close_think`` applies
    close_open_think. ``prefill`` is put after the generation prompt; one that opens ``<think>`` itself replaces an open
    tag the template already wrote. Raises ValueError without a chat template, ChatError (a ValueError) where the
    template fails.
    """
    shown, names = _hidden(tokenizer, messages)
    text = _templated(tokenizer, shown, thinking, prefill, close_think)
    return "".join(names.get(character, character) for character in text) if names else text


def render(
    tokenizer: Any, messages: Sequence[Message], thinking: bool | None, prefill: str = "", close_think: bool = False
) -> list[int]:
    """Token ids of render_text. The template writes the special tokens, so none are added (no second BOS).

    Control tokens that a message spells out are its text: only the template's own become control tokens. Raises as
    render_text, and for a message that the template leaves out or that has characters which the tokenizer does not.
    """
    shown, names = _hidden(tokenizer, messages)
    text = _templated(tokenizer, shown, thinking, prefill, close_think)
    _check_whole(tokenizer, shown, text)
    ids: list[int] = []
    for piece in re.split(f"([{''.join(names)}])", text) if names else [text]:
        try:
            if piece in names:
                ids += spelled_ids(tokenizer, names[piece])
            elif piece:
                ids += tokenizer.encode(piece, add_special_tokens=False)
        except Exception as error:  # the tokenizers library raises no other
            detail = f"gives a prompt that the tokenizer cannot encode, {piece[:200]!r}: {one_line(error)}"
            raise ChatError(tokenizer, "characters that the tokenizer does not have", detail) from None
    return ids


def template_honours_thinking(tokenizer: Any) -> bool:
    """Whether ``enable_thinking`` changes the rendered prompt at all."""
    probe = [{"role": "user", "content": "1+1"}]
    return render_text(tokenizer, probe, True) != render_text(tokenizer, probe, False)


def _templated(
    tokenizer: Any, messages: Sequence[Message], thinking: bool | None, prefill: str, close_think: bool
) -> str:
    """The template's text of the messages, and what is put after it."""
    require_chat_template(tokenizer)
    flag = {} if thinking is None else {"enable_thinking": thinking}
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **flag)
    except Exception as error:  # a template may raise anything
        roles = ", ".join(message["role"] for message in messages)
        said = one_line(error) or type(error).__name__
        fix = "give rows without the turn that it refuses, or mend chat_template.jinja"
        raise ChatError(tokenizer, "chat template fails", f"fails on the turns {roles}: {said}", fix) from None
    if close_think:
        text = close_open_think(text)
    if prefill.startswith("<think>"):
        text = _OPEN_THINK.sub("", text)
    return text + prefill


def _hidden(tokenizer: Any, messages: Sequence[Message]) -> tuple[list[dict[str, str]], dict[str, str]]:
    """The messages with a private character for each control token they spell out, and which stands for which."""
    pattern, names = control_tokens(tokenizer), {}
    contents = "".join(message["content"] for message in messages)
    if pattern is None or not (found := dict.fromkeys(pattern.findall(contents))):
        return [dict(message) for message in messages], {}
    free = (chr(code) for code in range(_PRIVATE[0], _PRIVATE[1] + 1) if chr(code) not in contents)
    marks = {name: next(free) for name in found}
    names = {mark: name for name, mark in marks.items()}
    hide = lambda text: pattern.sub(lambda match: marks[match[0]], text)  # noqa: E731
    return [{**message, "content": hide(message["content"])} for message in messages], names


def _check_whole(tokenizer: Any, messages: Sequence[Message], text: str) -> None:
    """Raises ChatError for a message that is not in the rendered text; templates leave earlier thinking out."""
    for message in messages:
        content = message["content"]
        if message["role"] == "assistant":
            content = _CLOSED_THINK.sub("", content)
        if content.strip() not in text and json.dumps(content.strip(), ensure_ascii=False)[1:-1] not in text:
            fix = "give rows without it, or mend chat_template.jinja"
            detail = f"leaves out the {message['role']}'s turn {content.strip()[:80]!r}"
            raise ChatError(tokenizer, f"chat template leaves out the {message['role']}'s turn", detail, fix)
