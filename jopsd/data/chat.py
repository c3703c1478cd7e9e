"""Messages to prompt token ids through a tokenizer's own chat template."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

Message = Mapping[str, str]

_OPEN_THINK = re.compile(r"<think\s*>\s*\Z")


def require_chat_template(tokenizer: Any) -> None:
    """Raise ValueError, with the fix, if the tokenizer has no chat template."""
    if getattr(tokenizer, "chat_template", None):
        return
    name = getattr(tokenizer, "name_or_path", "") or "this tokenizer"
    raise ValueError(
        f"{name} has no chat template, so prompts cannot be rendered; fix: use the instruct model's tokenizer, or set "
        "tokenizer.chat_template and tokenizer.save_pretrained(directory), which writes chat_template.jinja"
    )


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
    tag the template already wrote. Raises ValueError without a chat template.
    """
    require_chat_template(tokenizer)
    flag = {} if thinking is None else {"enable_thinking": thinking}
    text = tokenizer.apply_chat_template(
        [dict(message) for message in messages], tokenize=False, add_generation_prompt=True, **flag
    )
    if close_think:
        text = close_open_think(text)
    if prefill.startswith("<think>"):
        text = _OPEN_THINK.sub("", text)
    return text + prefill


def render(
    tokenizer: Any, messages: Sequence[Message], thinking: bool | None, prefill: str = "", close_think: bool = False
) -> list[int]:
    """Token ids of render_text. The template writes the special tokens, so none are added (no second BOS).

    Raises ValueError for a text with characters that the tokenizer does not have.
    """
    text = render_text(tokenizer, messages, thinking, prefill, close_think)
    try:
        return list(tokenizer.encode(text, add_special_tokens=False))
    except Exception as error:  # the tokenizers library raises no other
        raise ValueError(f"the tokenizer cannot encode the prompt {text[:200]!r}: {error}") from None


def template_honours_thinking(tokenizer: Any) -> bool:
    """Whether ``enable_thinking`` changes the rendered prompt at all."""
    probe = [{"role": "user", "content": "1+1"}]
    return render_text(tokenizer, probe, True) != render_text(tokenizer, probe, False)
