"""Pre-trains the base model of the embedded task and writes it as a Hugging Face directory.

    python -m jopsd.data.pretrain_sums --output DIR [--steps 1600]

The model reads chat prompts exactly as training renders them and learns the sloppy demonstrator of `jopsd.data.sums`.
Besides plain problems it sees prompts with a reference solution, which it copies, right or wrong, and with a failed
attempt, which it repairs. That is what makes it a teacher once it is shown a solution. A quarter of the problems are
in Swahili, from the first step on: added later, the second language is not learned.
"""

import argparse
import re
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jopsd.data import sums
from jopsd.data.sums_tokenizer import END, MAX_LENGTH, PAD, VOCAB, VOCAB_SIZE, write_tokenizer
from jopsd.models.decoder import Decoder, ModelConfig
from jopsd.sampling import Policy, Request, SamplingParams, make_sampler

CONFIG = ModelConfig(
    vocab_size=VOCAB_SIZE,
    hidden_size=128,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    intermediate_size=384,
    rope_theta=1e4,
    tie_embeddings=True,
)
ROWS, ROW_LENGTH = 16, 180  # one batch, about 32 documents packed
PROMPT_WEIGHT = 0.1  # of the loss on prompt tokens, against 1 on response tokens
MAX_NEW = 44  # tokens; the longest right solution has 38

SWAHILI = 0.25  # share of documents in the second language
CLOSED_THINK = 0.10  # share of prompts that end in a closed thinking block
PLAIN, HINTED = 0.61, 0.29  # shares by kind; the rest has a failed attempt
FOLLOW = 0.99  # per step, to copy a reference
REPAIR = 0.95  # per step, to be right after a failed attempt
CLEAN_REFERENCE = 0.6  # share of references that are right, not the demonstrator's


class Document(NamedTuple):
    """One training text: a user message, whether the thinking block is closed, and the response."""

    user: str
    closed: bool
    response: str


class Batch(NamedTuple):
    """Packed documents, all [B,T]; `weights` is 0 where a token cannot be predicted from its own document."""

    tokens: np.ndarray  # int32
    segments: np.ndarray  # int32, 0 on padding
    positions: np.ndarray  # int32
    weights: np.ndarray  # float32


# --- documents


def user_message(
    numbers: Sequence[int],
    *,
    swahili: bool = False,
    translate: bool = False,
    reference: Sequence[int] | None = None,
    failed: Sequence[int] | None = None,
) -> str:
    """The user message of one problem; the running totals in `reference` and `failed` become hints."""
    lines = [f"Tatizo: {sums.swahili_words(numbers)}" if swahili else f"Problem: {sums.english(numbers)}"]
    if translate:
        lines.append(f"Problem: {sums.english(numbers)}")
    if reference is not None:
        lines.append(f"Reference Solution: {sums.worked(numbers, reference)}")
    if failed is not None:
        lines.append(f"Failed Attempt: {sums.worked(numbers, failed)}")
    return "\n".join(lines)


def wrong_totals(rng: np.random.Generator, numbers: Sequence[int]) -> list[int]:
    """Running totals of the demonstrator that end in a wrong answer."""
    while True:
        totals = sums.sloppy_totals(rng, numbers)
        if totals[-1] != sum(numbers):
            return totals


def respond(rng: np.random.Generator, numbers: Sequence[int], reference, failed) -> list[int]:
    """Running totals of a response: copies the reference while on its track, else takes care if warned, else sloppy."""
    totals = [numbers[0]]
    for step, number in enumerate(numbers[1:]):
        on_track = reference is not None and [numbers[0], *reference][step] == totals[-1]
        if on_track and rng.random() < FOLLOW:
            totals.append(reference[step])
        elif failed is not None and rng.random() < REPAIR:
            totals.append(totals[-1] + number)
        else:
            totals.append(sums.sloppy_add(rng, totals[-1], number))
    return totals[1:]


def documents(rng: np.random.Generator) -> Iterator[Document]:
    """Endless training documents."""
    for numbers in sums.draws(rng, "train"):
        kind, swahili, closed = rng.random(), rng.random() < SWAHILI, rng.random() < CLOSED_THINK
        reference = failed = None
        if kind >= PLAIN + HINTED:
            failed = wrong_totals(rng, numbers)
            reference = sums.right_totals(numbers) if rng.random() < 0.5 else None
        elif kind >= PLAIN:
            clean = rng.random() < CLEAN_REFERENCE
            reference = sums.right_totals(numbers) if clean else sums.sloppy_totals(rng, numbers)
        translate = swahili and reference is not None and rng.random() < 0.5
        user = user_message(numbers, swahili=swahili, translate=translate, reference=reference, failed=failed)
        yield Document(user, closed, sums.worked(numbers, respond(rng, numbers, reference, failed)))


def prompt_frames(tokenizer) -> dict[bool, tuple[str, str]]:
    """What the chat template puts before and after a user message, keyed by whether thinking is closed."""
    render = partial(
        tokenizer.apply_chat_template,
        [{"role": "user", "content": "\0"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    return {closed: tuple(render(enable_thinking=not closed).split("\0")) for closed in (False, True)}


# --- batches


def encode(tokenizer, frames, document: Document) -> tuple[list[int], int]:
    """Token ids of a document and the length of its prompt."""
    before, after = frames[document.closed]
    prompt = tokenizer.encode(before + document.user + after, add_special_tokens=False)
    return prompt + tokenizer.encode(document.response + END, add_special_tokens=False), len(prompt)


def batches(encoded: Iterator[tuple[list[int], int]]) -> Iterator[Batch]:
    """Packs documents first-fit into rows; a batch ends with the first document that fits nowhere."""
    batch, used, count = empty_batch(), np.zeros(ROWS, int), 0
    for ids, prompt_length in encoded:
        if len(ids) > ROW_LENGTH:
            raise ValueError(f"a document of {len(ids)} tokens does not fit a row of {ROW_LENGTH}")
        fitting = np.flatnonzero(used + len(ids) <= ROW_LENGTH)
        if not len(fitting):
            yield batch
            batch, used, count = empty_batch(), np.zeros(ROWS, int), 0
            fitting = [0]
        row, count = fitting[0], count + 1
        place = slice(used[row], used[row] + len(ids))
        batch.tokens[row, place] = ids
        batch.segments[row, place] = count
        batch.positions[row, place] = np.arange(len(ids))
        batch.weights[row, place] = [0.0] + [PROMPT_WEIGHT] * (prompt_length - 1) + [1.0] * (len(ids) - prompt_length)
        used[row] += len(ids)


def empty_batch() -> Batch:
    """A batch of padding."""
    shape = (ROWS, ROW_LENGTH)
    zeros = [np.zeros(shape, np.int32) for _ in range(3)]
    return Batch(*zeros, np.zeros(shape, np.float32))


# --- training


def optimizer(steps: int) -> optax.GradientTransformation:
    """AdamW under a cosine with warm-up."""
    rate = optax.warmup_cosine_decay_schedule(0.0, 3e-3, min(50, steps // 2), steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.98, weight_decay=0.01))


def weighted_loss(model: Decoder, batch: Batch) -> jax.Array:
    """Weighted mean negative log-likelihood, in nats per token."""
    h = model.hidden(batch.tokens, positions=batch.positions, segments=batch.segments)
    logprobs = jax.nn.log_softmax(model.unembed(h[:, :-1]))
    picked = jnp.take_along_axis(logprobs, batch.tokens[:, 1:, None], axis=-1)[..., 0]
    weights = batch.weights[:, 1:]
    return -jnp.sum(weights * picked) / jnp.sum(weights)


def train(tokenizer, steps: int, seed: int, report) -> Decoder:
    """Trains from scratch; calls `report(step, loss, model)` after every step."""
    model = Decoder(CONFIG, jax.random.key(seed))
    transform = optimizer(steps)
    state = transform.init(model)

    @partial(jax.jit, donate_argnums=(0, 1))
    def update(model, state, batch):
        loss, gradient = jax.value_and_grad(weighted_loss)(model, batch)
        change, state = transform.update(gradient, state, model)
        return optax.apply_updates(model, change), state, loss

    frames = prompt_frames(tokenizer)
    encoded = (encode(tokenizer, frames, d) for d in documents(np.random.default_rng(seed)))
    for step, batch in enumerate(islice(batches(encoded), steps), start=1):
        model, state, loss = update(model, state, batch)
        report(step, loss, model)
    return model


# --- evaluation


def generate(model: Decoder, prompts: list[list[int]], temperature: float, seed: int) -> list[np.ndarray]:
    """A completion of each prompt; temperature 0 is greedy."""
    sampler = make_sampler("loop", model.cfg, Policy(model, None), 64, MAX_LENGTH)
    params = SamplingParams(MAX_NEW, temperature=temperature, stop_ids=(VOCAB[END],))
    requests = [Request(tuple(ids), 1, seed, params, number) for number, ids in enumerate(prompts)]
    found = {completion.request_id: completion.completion_ids for completion in sampler.sample(requests)}
    return [found[number] for number in range(len(prompts))]


def is_right(text: str, answer: int) -> bool:
    """Whether a completion ended by itself and its last box holds the answer."""
    boxes = re.findall(r"\\boxed\{([^{}]*)\}", text)
    return END in text and bool(boxes) and boxes[-1] == str(answer)


def accuracy(model: Decoder, tokenizer, users: list[Document], answers: list[int], temperature: float, seed: int):
    """Share of right completions, one per prompt."""
    frames = prompt_frames(tokenizer)
    prompts = [tokenizer.encode(frames[d.closed][0] + d.user + frames[d.closed][1]) for d in users]
    completions = generate(model, prompts, temperature, seed)
    return np.mean([is_right(tokenizer.decode(c), a) for c, a in zip(completions, answers, strict=True)])


def evaluation_prompts(count: int, seed: int) -> tuple[dict[str, list[Document]], list[int]]:
    """Held-out prompts by kind, and the answers."""
    rng = np.random.default_rng(seed)
    quads = list(islice(sums.draws(rng, "test"), count))
    wrong = [wrong_totals(rng, q) for q in quads]
    right = [sums.right_totals(q) for q in quads]
    pairs = list(zip(quads, right, wrong, strict=True))
    users = {
        "english": [user_message(q) for q in quads],
        "swahili": [user_message(q, swahili=True) for q in quads],
        "right hint": [user_message(q, reference=r) for q, r, _ in pairs],
        "wrong hint": [user_message(q, reference=w) for q, _, w in pairs],
        "swahili, english, right hint": [
            user_message(q, swahili=True, translate=True, reference=r) for q, r, _ in pairs
        ],
        "failed attempt": [user_message(q, failed=w) for q, _, w in pairs],
    }
    kinds = {name: [Document(user, False, "") for user in rows] for name, rows in users.items()}
    kinds["english, thinking off"] = [Document(user, True, "") for user in users["english"]]
    return kinds, [r[-1] for r in right]


def evaluate(model: Decoder, tokenizer, count: int = 256, seed: int = 1) -> dict[str, tuple[float, float]]:
    """Greedy and temperature-1 accuracy on `count` held-out problems, by kind of prompt."""
    kinds, answers = evaluation_prompts(count, seed)
    score = partial(accuracy, model, tokenizer, answers=answers, seed=seed)
    return {name: (score(users, temperature=0.0), score(users, temperature=1.0)) for name, users in kinds.items()}


def show(scores: dict[str, tuple[float, float]]) -> None:
    """Prints one line per kind of prompt."""
    for name, (greedy, sampled) in scores.items():
        print(f"  {name:30s} greedy {greedy:.3f}   T1 {sampled:.3f}", flush=True)


# --- command line


def write_model(model: Decoder, output: Path, dtype: str) -> None:
    """Writes config, weights in `dtype` and the tokenizer files."""
    from jopsd.models.hf import hf_config, save_pretrained

    ids = {"bos_token_id": None, "eos_token_id": VOCAB[END], "pad_token_id": VOCAB[PAD]}
    source = hf_config(model.cfg) | ids | {"max_position_embeddings": MAX_LENGTH}
    save_pretrained(model, output, source=source, dtype=dtype)
    write_tokenizer(output)


def main() -> None:
    """Command line."""
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="directory to write, must not hold a model yet")
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="float16", choices=("float16", "bfloat16", "float32"))
    parser.add_argument("--evaluate-every", type=int, default=400, help="steps between evaluations")
    arguments = parser.parse_args()
    if arguments.output.exists() and any(arguments.output.iterdir()):
        parser.error(f"--output {arguments.output} is not empty; name another directory")
    with TemporaryDirectory() as scratch:
        tokenizer = AutoTokenizer.from_pretrained(write_tokenizer(scratch))
    start = time.process_time()

    def report(step, loss, model):
        if step % 50 == 0:
            print(f"step {step:5d}  loss {loss:.4f}  cpu {time.process_time() - start:.0f} s", flush=True)
        if step % arguments.evaluate_every == 0 and step < arguments.steps:
            show(evaluate(model, tokenizer))

    model = train(tokenizer, arguments.steps, arguments.seed, report)
    model = jax.tree.map(lambda x: x.astype(arguments.dtype).astype(jnp.float32), model)
    print(f"{arguments.steps} steps, {time.process_time() - start:.0f} CPU seconds, weights in {arguments.dtype}")
    show(evaluate(model, tokenizer))
    write_model(model, arguments.output, arguments.dtype)


if __name__ == "__main__":
    main()
