"""Updates, and the loss alone, with jopsd for `bench.peers`: the worker of our side."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from bench.peers.compile_clock import compile_clock
from bench.peers.ours_step import config_of
from bench.peers.protocol import Run, serve, timed
from bench.peers.training import Case, Tokens, exact_gradient, loss_inputs, make_tokens, relative_error
from jopsd.config import Config, validate_config
from jopsd.data.problem import Problem
from jopsd.losses import fused_loss
from jopsd.mesh import put_rows
from jopsd.methods import Opsd
from jopsd.models.decoder import Decoder, ModelConfig
from jopsd.optimizer import make_optimizer
from jopsd.packing import pack
from jopsd.prompts import Item
from jopsd.rollouts import Rollout, batch_of
from jopsd.setup import Weights, load_weights, make_run_mesh, packing_of, step_options, teacher_rule
from jopsd.step import init_state, make_update
from jopsd.teachers import Models


def load(case: dict, threads: int) -> Callable[[str], Run]:
    case = Case(**case)
    return lambda name: losses(case) if case.work == "loss" else updates(case, equal=name == "equal")


def losses(case: Case) -> Run:
    """Loss and gradients, to the hidden states and to the head, of fixed inputs."""
    method, tokens = Opsd(alpha=case.alpha, temperature=1.0), case.new[0]
    inputs = loss_inputs(case)
    exact, divergence = exact_gradient(inputs, case.alpha)
    student, teacher = (jnp.asarray(x, case.dtype) for x in (inputs.student, inputs.teacher))
    head = jnp.concatenate([jnp.asarray(block, case.dtype) for _, block in inputs.head()])
    teachers, ones = jnp.copy(head), jnp.ones((1, tokens))

    @jax.jit
    def gradients(student, head, teacher, teachers):
        def loss(student, head):
            heads = {"student": head, "teacher": teachers}
            constants, targets = {"weight": ones / tokens}, jnp.zeros((1, tokens), jnp.int32)
            return fused_loss(method.value, student[None], {"teacher": teacher[None]}, heads, targets, constants, ones)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(student, head)

    def run(number: int) -> dict[str, float]:
        work = lambda: jax.block_until_ready(gradients(student, head, teacher, teachers))  # noqa: E731
        wall, cpu, (_, (by_student, _)) = timed(work)
        error = relative_error(np.asarray(by_student, np.float32), exact)
        return {"wall": wall, "cpu": cpu, "gradient error": error, "KL": divergence}

    return run


def updates(case: Case, equal: bool) -> Run:
    """An update of the trainer, with the arrays it makes of rollouts. equal: of rows of one length."""
    unused = Path("unused")
    model = case.model if isinstance(case.model, str) else "random"
    config = validate_config(config_of(case, model, unused, unused, steps=1000), "the benchmark's config")
    mesh = make_run_mesh(config)
    weights = load_weights(config, mesh) if isinstance(case.model, str) else random_weights(case, config, mesh)
    packing = packing_of(config, weights.model_config, mesh)
    update, state = make_update(step_options(config), weights.optimizer, mesh, weights.state), [weights.state]

    def work(tokens: list[Tokens]) -> dict:
        rollouts = [rollout_of(one, group) for group, one in enumerate(tokens)]
        batch = put_rows(pack([batch_of(rollouts, config, None)], packing)[0], mesh)
        state[0], metrics = update(state[0], weights.models, batch)
        return jax.device_get(metrics)

    def run(number: int) -> dict[str, float]:
        tokens = make_tokens(case, number, weights.model_config.vocab_size, equal)
        with jax.set_mesh(mesh):
            wall, cpu, metrics = timed(partial(work, tokens))
        if metrics["nonfinite"]:
            raise ValueError("the loss or its gradient is not finite")
        return {"wall": wall, "cpu": cpu, "loss": float(metrics["loss"])}

    return run


def random_weights(case: Case, config: Config, mesh) -> Weights:
    """What `load_weights` gives for full training, of a random model."""
    cfg = ModelConfig(**case.model, dtype=case.dtype, param_dtype=case.dtype, remat=config.model.remat)
    model = jax.jit(lambda: Decoder(cfg, jax.random.key(0)))()
    optimizer, schedule = make_optimizer(config.optimizer, config.train.steps)
    state = init_state(model, optimizer, mesh, teacher_rule(config))
    return Weights(cfg, Models(base=jax.tree.map(jnp.copy, model)), state, optimizer, schedule)


def rollout_of(tokens: Tokens, group: int) -> Rollout:
    prompts = {"student": tokens.student, "teacher": tokens.teacher}
    return Rollout(
        item=Item(Problem(str(group), ""), prompts),
        completion_ids=np.asarray(tokens.completion, np.int32),
        sampler_logprobs=np.zeros(len(tokens.completion), np.float32),
        finish="length",
        text="",
        score=None,
        group=group,
        policy_version=0,
        prompts=prompts,
    )


if __name__ == "__main__":
    serve(load, compile_clock())
