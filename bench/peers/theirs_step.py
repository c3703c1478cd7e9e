"""Trains with TRL's SDFTTrainer for `bench.peers`, whole steps: the peer's worker, in an environment of its own."""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false"}

import datasets
import torch
from peft import LoraConfig
from transformers import TrainerCallback
from trl.experimental.sdft import SDFTConfig, SDFTTrainer

from bench.peers.protocol import Run, serve
from bench.peers.training import TEACHER_TEMPLATE, Case, make_rows, model_directory, step_answer


def load(case: dict, threads: int) -> Callable[[str], Run]:
    case = Case(**case)
    torch.set_num_threads(threads)

    def run(number: int) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            return trained(case, number, Path(folder))

    return lambda name: run


class Timed(SDFTTrainer):
    """Keeps what sampling took, and how many tokens it drew, of each step."""

    def sample_rollouts(self, inputs):
        start = time.perf_counter()
        batch = super().sample_rollouts(inputs)
        self.drawn = {"sampling": time.perf_counter() - start, "tokens": int(batch["raw_completion_lengths"].sum())}
        return batch


class Steps(TrainerCallback):
    """The seconds of each step, from its batch of prompts to the end of the optimiser's update."""

    def __init__(self):
        self.found, self.ended = [], []

    def on_step_begin(self, *_, **__):
        self.start = time.perf_counter(), time.process_time()

    def on_step_end(self, *_, **__):
        self.found.append({"wall": time.perf_counter() - self.start[0], "cpu": time.process_time() - self.start[1]})
        self.ended.append(time.time())
        self.found[-1] |= self.trainer.drawn


def trained(case: Case, number: int, folder: Path) -> dict[str, float]:
    """One start of the trainer; with number 0 its first step alone."""
    rows = [
        {"prompt": [{"role": "user", "content": row["problem"]}], "privileged_context": row["solution"]}
        for row in make_rows(case, number)
    ]
    steps = Steps()
    steps.trainer = trainer = Timed(
        model=model_directory(case, folder),
        args=config_of(case, folder / "run", 1 + (case.steps if number else 0)),
        train_dataset=datasets.Dataset.from_list(rows),
        peft_config=LoraConfig(r=case.lora, lora_alpha=2 * case.lora, target_modules="all-linear"),
        callbacks=[steps],
    )
    trainer.train()
    return step_answer(case, steps.found, steps.ended[0])


def config_of(case: Case, run_dir: Path, steps: int) -> SDFTConfig:
    """OPSD: the base model as teacher, the divergence of the whole vocabulary, one completion per prompt.

    Without recomputation: what is fastest where memory allows.
    """
    return SDFTConfig(
        output_dir=str(run_dir),
        model_init_kwargs={"dtype": case.dtype},
        bf16=False,  # the weights have the type already
        use_cpu=True,
        distillation_mode="full_logits",
        distillation_alpha=case.alpha,
        distillation_is_clip=None,
        teacher_model_kind="base",
        teacher_prompt_template=TEACHER_TEMPLATE.replace("{problem}", "{prompt}").replace(
            "{solution}", "{privileged_context}"
        ),
        num_generations=1,
        max_completion_length=max(case.new),
        max_prompt_length=None,
        per_device_train_batch_size=case.micro,
        gradient_accumulation_steps=len(case.new) // case.micro,
        gradient_checkpointing=False,
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        max_steps=steps,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


if __name__ == "__main__":
    serve(load)
