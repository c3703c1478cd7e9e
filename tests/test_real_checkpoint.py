"""The whole path a user walks: a checkpoint as transformers writes it, trained with LoRA, killed, resumed, written
back, read by transformers again and evaluated. Random weights, a byte-level tokenizer, real rows where they are there.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.runs import environment, kill_when, rows, run, series, write_rows

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

CHATML = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
INLINE = [
    {
        "problem": f"What is ${a} \\times {b}$?",
        "solution": f"It is $\\boxed{{{a * b}}}$, as {b} times {a}.",
        "Answer": a * b,
    }
    for a, b in [(2, 3), (4, 5), (6, 7), (8, 9), (3, 11), (12, 4), (5, 13), (9, 6)]
]


def make_tokenizer(texts: list[str], vocab_size: int):
    """A byte-level BPE as Qwen's, trained here, with ChatML."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.chat_template = CHATML
    return tokenizer


# What each family adds to the sizes below; the window is shorter than every prompt.
FAMILY_OPTIONS = {
    "Qwen3": {},
    "Qwen2": {},
    "Llama": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
                                  "high_freq_factor": 4.0, "original_max_position_embeddings": 64}},
    "Olmo3": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
}  # fmt: skip


def make_model(folder: Path, tokenizer, family: str, hidden: int, layers: int) -> None:
    """A directory in several files, weights larger than an init has so that logits differ visibly."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=64 * -(-len(tokenizer) // 64),  # padded, as Qwen's is
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden // 4,
        initializer_range=0.05,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        **FAMILY_OPTIONS[family],
    )
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    model.save_pretrained(folder, max_shard_size=size // 2 + size // 10)
    tokenizer.save_pretrained(folder)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) == 2


def logits_of(folder: Path, ids: list[int]) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


def module(name: str, *arguments: str, env: dict[str, str], cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", name, *arguments], env=env, cwd=cwd, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(
    params=["Olmo3", *(pytest.param(x, marks=pytest.mark.slow) for x in ("Qwen3", "Qwen2", "Llama", "real rows"))]
)
def case(request, tmp_path) -> dict:
    """Training rows, evaluation rows and sizes: a handful made here, or the real ones and a few million parameters."""
    if request.param != "real rows":
        train = write_rows(tmp_path / "train.jsonl", INLINE)
        test = write_rows(tmp_path / "test.jsonl", [{k.lower(): v for k, v in row.items()} for row in INLINE[:3]])
        sizes = {"vocabulary": 320, "hidden": 64, "layers": 2, "limit": 8, "family": request.param}
        return {"train": train, "test": test, **sizes}
    shared = request.getfixturevalue("shared")
    train, test = shared / "data/train_opsd_math500rows.jsonl", shared / "data/math500.jsonl"
    sizes = {"vocabulary": 4000, "hidden": 256, "layers": 4, "limit": 64, "family": "Qwen3"}
    return {"train": train, "test": test, **sizes}


def test_a_transformers_checkpoint_trains_resumes_goes_back_and_evaluates(case, tmp_path):
    table = [json.loads(line) for line in case["train"].read_text().splitlines()]
    tokenizer = make_tokenizer([f"{row['problem']} {row['solution']}" for row in table], case["vocabulary"])
    make_model(tmp_path / "model", tokenizer, case["family"], case["hidden"], case["layers"])
    config, run_dir = tmp_path / "run.yaml", tmp_path / "run"
    tree = {
        "output_dir": str(run_dir),
        "model": {"path": str(tmp_path / "model"), "dtype": "float32"},
        "lora": {"rank": 4, "alpha": 8},
        "method": {"name": "opsd"},
        "student": {"thinking": False},
        "teacher": {"thinking": True},
        "data": {
            "source": str(case["train"]),
            "limit": case["limit"],
            "on_long_prompt": "skip",
            "max_prompt_tokens": 600,
        },
        "sampling": {"max_new_tokens": 12, "slots": 4, "chunk": 4},
        "optimizer": {"learning_rate": 1e-2, "schedule": "constant"},
        "train": {"steps": 3, "batch_size": 4, "pad_to": 64, "token_chunk": 64},
        "checkpoint": {"every": 1},
    }
    config.write_text(yaml.safe_dump(tree))
    env = environment()

    assert kill_when(config, env, lambda: (run_dir / "checkpoints/1").exists())
    text = run(config, env)
    assert f"resuming {run_dir} after step " in text
    assert "thinking: student off, teacher on" in text
    student, teacher = (text.split(f"--- first {view} prompt")[1].split("\n---")[0] for view in ("student", "teacher"))
    assert student.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert teacher.endswith("<|im_start|>assistant\n") and "Reference Solution" in teacher
    assert [row["step"] for row in rows(run_dir)] == [1, 2, 3]
    assert np.isfinite(series(run_dir, "loss")).all() and max(series(run_dir, "sampler_gap")) < 1e-4

    module("convert", "to-hf", "--from", str(run_dir), "--output", str(tmp_path / "trained"), env=env, cwd=tmp_path)
    # Read anew: for some architectures transformers splits words by its own rule, whatever tokenizer.json says.
    before, again = (transformers.AutoTokenizer.from_pretrained(tmp_path / name) for name in ("model", "trained"))
    ids = before.encode(table[0]["problem"])
    assert again.chat_template == CHATML and again.encode(table[0]["problem"]) == ids
    trained, untrained = (logits_of(tmp_path / name, ids) for name in ("trained", "model"))
    np.testing.assert_allclose(trained, our_logits(run_dir, ids), atol=2e-4)
    assert np.abs(trained - untrained).max() > 1e-2, "training changed what the model says"

    settings = ["--limit", "3", "--samples", "2", "--max-new-tokens", "8", "--thinking", "off", "--slots", "4"]
    source = ["--model", str(tmp_path / "trained"), "--data", str(case["test"])]
    module("eval", *source, *settings, "--output", str(tmp_path / "eval"), env=env, cwd=tmp_path)
    assert len((tmp_path / "eval/generations.jsonl").read_text().splitlines()) == 6
    assert json.loads((tmp_path / "eval/results.json").read_text())


def our_logits(run_dir: Path, ids: list[int]) -> np.ndarray:
    """Logits [T,V] of the run's policy: base and adapter, never merged."""
    import jax
    import jax.numpy as jnp

    from jopsd.mesh import make_mesh
    from jopsd.policies import restore_policy

    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    policy = restore_policy(run_dir, mesh=mesh).policy
    with jax.set_mesh(mesh):
        hidden = policy.model.hidden(jnp.asarray([ids]), adapter=policy.adapter)
        return np.asarray(policy.model.unembed(hidden)[0])
