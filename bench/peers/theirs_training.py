"""Updates, and the loss alone, with TRL's and Liger's losses for `bench.peers`: the peers' worker."""

import copy
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}

import torch
from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from trl.experimental.sdft.loss_utils import compute_full_logit_self_distillation_loss
from trl.trainer.distillation_trainer import _chunked_divergence_loss

from bench.peers.protocol import Run, serve, timed
from bench.peers.theirs_sampling import qwen3
from bench.peers.training import Case, Tokens, exact_gradient, loss_inputs, make_tokens, relative_error

# (hidden states [B,T,H] of student and teacher, their heads [V,H], mask [B,T]) -> mean divergence of the tokens
Loss = Callable[..., torch.Tensor]


def load(case: dict, threads: int) -> Callable[[str], Run]:
    case = Case(**case)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    return partial(losses if case.work == "loss" else updates, case)


def losses(case: Case, name: str) -> Run:
    """Loss and gradients, to the hidden states and to the head, of fixed inputs."""
    inputs, dtype = loss_inputs(case), getattr(torch, case.dtype)
    exact, divergence = exact_gradient(inputs, case.alpha)
    student, teacher = (torch.from_numpy(x).to(dtype) for x in (inputs.student, inputs.teacher))
    head = torch.cat([torch.from_numpy(block).to(dtype) for _, block in inputs.head()])
    teachers, mask = head.clone(), torch.ones(1, case.new[0], dtype=torch.long)
    student.requires_grad_(), head.requires_grad_()
    loss = loss_of(name, case.alpha)

    def work():
        student.grad = head.grad = None
        loss(student[None], teacher[None], head, teachers, mask).backward()

    def run(number: int) -> dict[str, float]:
        wall, cpu, _ = timed(work)
        error = relative_error(student.grad.float().numpy(), exact)
        return {"wall": wall, "cpu": cpu, "gradient error": error, "KL": divergence}

    return run


def loss_of(name: str, alpha: float) -> Loss:
    def trl(student, teacher, head, teachers, mask):
        with torch.no_grad():
            theirs = teacher @ teachers.T
        per_token = compute_full_logit_self_distillation_loss(student @ head.T, theirs, distillation_alpha=alpha)
        return (per_token * mask).sum() / mask.sum()

    def chunked(student, teacher, head, teachers, mask):
        return _chunked_divergence_loss(student, teacher, head, teachers, mask, beta=alpha)[0]

    # No share of cross-entropy, as in TRL's GKDTrainer while it called Liger; it did not compile it.
    options = {"weight_hard_loss": 0.0, "weight_soft_loss": 1.0, "beta": alpha, "compiled": name == "compiled"}
    jsd = LigerFusedLinearJSDLoss(**options)

    def liger(student, teacher, head, teachers, mask):
        labels = torch.where(mask.flatten() != 0, 0, -100)
        return jsd(student.flatten(0, 1), head, teacher.flatten(0, 1), teachers, labels)

    return {"trl": trl, "chunked": chunked}.get(name, liger)


def updates(case: Case, name: str) -> Run:
    """Forward and backward pass, clipping and AdamW, as `SDFTTrainer` does them."""
    dtype, loss = getattr(torch, case.dtype), loss_of(name, case.alpha)
    if isinstance(case.model, str):
        model = AutoModelForCausalLM.from_pretrained(case.model, dtype=dtype)
    else:
        model = AutoModelForCausalLM.from_config(qwen3(case.model), dtype=dtype)
    if case.lora:
        lora = LoraConfig(r=case.lora, lora_alpha=2 * case.lora, target_modules="all-linear")
        model = get_peft_model(model, lora)
        student = teacher = model.get_base_model()
    else:
        student, teacher = model, copy.deepcopy(model).requires_grad_(False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.0)

    def work(tokens: Sequence[Tokens]) -> float:
        completions = [one.completion for one in tokens]
        length = max(map(len, completions))
        mask = torch.tensor([[1] * len(c) + [0] * (length - len(c)) for c in completions])
        with torch.no_grad(), model.disable_adapter() if case.lora else nullcontext():
            theirs = hidden(teacher, [one.teacher for one in tokens], completions)
        ours = hidden(student, [one.student for one in tokens], completions)
        value = loss(ours, theirs, student.lm_head.weight, teacher.lm_head.weight.detach(), mask)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return value.item()

    def run(number: int) -> dict[str, float]:
        tokens = make_tokens(case, number, student.config.vocab_size)
        wall, cpu, value = timed(lambda: work(tokens))
        if value != value:
            raise ValueError("the loss is not a number")
        return {"wall": wall, "cpu": cpu, "loss": value}

    return run


def hidden(model, prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> torch.Tensor:
    """Hidden states [B,T,H] that predict the completions. Prompts are padded on the left, completions on the right."""
    width, length = max(map(len, prompts)), max(map(len, completions))
    ids = [[0] * (width - len(p)) + p + c + [0] * (length - len(c)) for p, c in zip(prompts, completions, strict=True)]
    real = [
        [0] * (width - len(p)) + [1] * len(p + c) + [0] * (length - len(c))
        for p, c in zip(prompts, completions, strict=True)
    ]
    out = model.model(torch.tensor(ids), attention_mask=torch.tensor(real), use_cache=False)
    return out.last_hidden_state[:, width - 1 : -1]


if __name__ == "__main__":
    serve(load)
