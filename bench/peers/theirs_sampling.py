"""Draws with `generate` of transformers for `bench.peers`: the peer's worker, in an environment of its own."""

from collections.abc import Callable

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, Qwen3Config

from bench.peers.protocol import Run, serve
from bench.peers.sampling import Case, batches_of, repetitions


def load(case: dict, threads: int) -> Callable[[str], Run]:
    case = Case(**case)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    dtype = getattr(torch, case.dtype)
    if isinstance(case.model, str):
        model = AutoModelForCausalLM.from_pretrained(case.model, dtype=dtype)
    else:
        model = AutoModelForCausalLM.from_config(qwen3(case.model), dtype=dtype)
    model.eval()
    # Nothing but this decides: a pretrained model brings settings of its own, among them where to stop.
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=case.top_k, top_p=case.top_p, pad_token_id=0
    )

    def build(name: str) -> Run:
        options = {"cache_implementation": "static", "disable_compile": True} if name == "static" else {}

        def draw(prompts, new, number) -> int:
            useful = 0
            for part, lengths in batches_of(case.slots, prompts, new):
                ids, longest = torch.tensor(part), max(lengths)
                with torch.inference_mode():
                    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=longest, **options)
                if out.shape[1] != ids.shape[1] + longest:
                    raise ValueError(f"generate stopped after {out.shape[1] - ids.shape[1]} of {longest} tokens")
                useful += sum(lengths)
            return useful

        return repetitions(draw, case)

    return build


def qwen3(shape: dict) -> Qwen3Config:
    names = {
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "num_kv_heads": "num_key_value_heads",
    }
    fields = {names.get(name, name): size for name, size in shape.items()}
    return Qwen3Config(**fields, tie_word_embeddings=False, eos_token_id=None)


if __name__ == "__main__":
    serve(load)
