"""Chat templates of the kinds that models ship, written for the tests, and byte-level tokenizers that have them."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

GENERATE = "{% if add_generation_prompt %}"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    + GENERATE
    + "<|im_start|>assistant\n{% endif %}"
)
# A date, trimmed contents, and an end of turn that is not the end of the text.
LLAMA3 = (
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ strftime_now('%d %b %Y') }}\n\n"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] | trim }}{% set messages = messages[1:] %}"
    "{% endif %}<|eot_id|>{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}" + GENERATE + "<|start_header_id|>assistant<|end_header_id|>\n\n"
    "{% endif %}"
)
# Thinking is left out of earlier replies, and written empty before the last one.
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% if loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m['content'].split('</think>')[-1].lstrip('\n') }}"
    "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}" + GENERATE + "<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# No system role, another name for the assistant.
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}" + GENERATE + "<start_of_turn>model\n{% endif %}"
)
# Neither a generation prompt nor one that is needed: the end of the user's turn opens the reply.
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] }}{{ eos_token }}"
    "{% else %}[INST] {{ m['content'] }} [/INST]{% endif %}{% endfor %}"
)
# Nothing ends the last turn; the next speaker's name does.
GLM = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{% endfor %}" + GENERATE + "<|assistant|>{% endif %}"
)
SPECIALS = {
    CHATML: ("<|im_start|>", "<|im_end|>"),
    LLAMA3: ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    QWEN3: ("<|im_start|>", "<|im_end|>"),
    GEMMA: ("<start_of_turn>", "<end_of_turn>"),
    MISTRAL: ("[INST]", "[/INST]"),
    GLM: ("<|user|>", "<|assistant|>", "<|system|>"),
}
ENDS = {
    CHATML: "<|im_end|>",
    LLAMA3: "<|eot_id|>",
    QWEN3: "<|im_end|>",
    GEMMA: "<end_of_turn>",
    MISTRAL: "<eos>",
    GLM: "<|user|>",
}
THINK = ("<think>", "</think>")


def byte_level(template: str | None, special_thinking: bool = False, specials: tuple[str, ...] | None = None):
    """A tokenizer of bytes with the control tokens of a template; think tags are added tokens, special or not."""
    control = ("<bos>", "<eos>", *(SPECIALS.get(template, ()) if specials is None else specials))
    vocabulary = {token: i for i, token in enumerate([*control, *THINK, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([*control, *(THINK if special_thinking else ())])
    core.add_tokens([] if special_thinking else list(THINK))
    made = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", chat_template=template)
    made.clean_up_tokenization_spaces = False
    return made


def saved(folder: Path, tokenizer) -> Path:
    """A folder with the tokenizer's files."""
    tokenizer.save_pretrained(folder)
    return folder
