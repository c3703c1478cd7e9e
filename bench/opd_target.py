"""What OPD and ExOPD aim at on the embedded task: the policy proportional to R (T / R)^lam, sampled without training.

    python -m bench.opd_target [--lam 0,1,1.25,1.5] [--problems 512]

R is the task's base model and T its expert, the models of configs/tiny/{opd,exopd}.yaml. Prints the accuracy on
held-out problems, one answer each at temperature 1: where a student that follows the objective to its end would arrive.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from jopsd.data.chat import render
from jopsd.data.sums import problems
from jopsd.evaluate import wilson_interval
from jopsd.models.hf import load_pretrained, read_config
from jopsd.models.tokenizer import load_tokenizer
from jopsd.rewards.math import verify
from jopsd.setup import BUILTIN

MAX_NEW = 44


def load(name: str):
    cfg = read_config(BUILTIN[name], dtype="float32", param_dtype="float32", remat="none")
    return load_pretrained(BUILTIN[name], cfg)


def sample(reference, teacher, lam: float, prompts: jax.Array, key: jax.Array) -> jax.Array:
    """Completions [B,MAX_NEW] of prompts [B,P], all of one length."""
    width = prompts.shape[1]

    def draw(place, carry):
        tokens, key = carry
        key, now = jax.random.split(key)
        at = width + place - 1
        r, t = (jax.nn.log_softmax(m.unembed(m.hidden(tokens)[:, at])) for m in (reference, teacher))
        return tokens.at[:, at + 1].set(jax.random.categorical(now, r + lam * (t - r))), key

    tokens = jnp.pad(prompts, ((0, 0), (0, MAX_NEW)))
    return jax.lax.fori_loop(0, MAX_NEW, draw, (tokens, key))[0][:, width:]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.opd_target", description=__doc__.partition("\n")[0])
    parser.add_argument("--lam", default="0,1,1.25,1.5")
    parser.add_argument("--problems", type=int, default=512)
    args = parser.parse_args()
    reference, teacher = load("builtin:sums"), load("builtin:sums_expert")
    tokenizer = load_tokenizer(BUILTIN["builtin:sums"])
    held_out = problems("test", args.problems, seed=11)
    turns = [[{"role": "user", "content": f"Problem: {problem.problem}"}] for problem in held_out]
    prompts = jnp.asarray([render(tokenizer, turn, None) for turn in turns])
    draw = jax.jit(sample)
    for lam in map(float, args.lam.split(",")):
        drawn = np.asarray(draw(reference, teacher, lam, prompts, jax.random.key(0))).tolist()
        stop = tokenizer.eos_token_id
        texts = [tokenizer.decode(row[: row.index(stop)]) if stop in row else "" for row in drawn]
        right = sum(verify(text, problem.answer).correct for text, problem in zip(texts, held_out, strict=True))
        estimate = wilson_interval(right, len(held_out))
        print(f"lam {lam:<5} accuracy {estimate.mean:.3f} ({estimate.low:.3f} to {estimate.high:.3f})", flush=True)


if __name__ == "__main__":
    main()
