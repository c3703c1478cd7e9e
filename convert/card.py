"""The model card (README.md) of an export: what a stranger needs to know of how these weights came to be."""

import re
import sys
from pathlib import Path

from convert.opened import Run
from jopsd import __version__
from jopsd.config import to_yaml
from jopsd.models.hf import CONFIG
from jopsd.models.safetensors_files import read_json
from jopsd.setup import BUILTIN
from jopsd.tracking import read_metrics

CARD = "README.md"
_ARXIV = {
    "OPSD": "2601.18734",
    "PW-OPSD": "2605.21606",
    "COPSD": "2605.09548",
    "MOPD": "2605.12652",
    "SDPO": "2601.20802",
    "RLCSD": "2606.11709",
    "G-OPD": "2602.12125",
    "GRPO": "2402.03300",
}
# By method, and by context, which some papers are about.
_PAPERS = {
    "opsd": ("OPSD",),
    "sft": ("OPSD",),
    **dict.fromkeys(("pwopsd", "eopd", "reopold"), ("PW-OPSD", "OPSD")),
    "sdpo": ("SDPO",),
    **dict.fromkeys(("rlcsd", "rlsd", "rlsd_ectr", "opsd_ectr", "srpo"), ("RLCSD",)),
    "opd": ("G-OPD",),
    "grpo": ("GRPO",),
    "crosslingual": ("COPSD",),
    "peers": ("MOPD",),
}


def base_name(run: Run, path: str) -> str:
    """The name by which others find the base: a hub id where one is known, else the last part of its path.

    path: what the run or the user called it.
    """
    is_id = lambda text: re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(text or "")) is not None  # noqa: E731
    if path not in BUILTIN and is_id(path) and not Path(path).exists():
        return path
    stated = read_json(run.directory / CONFIG, "").get("_name_or_path")
    if is_id(stated) and not Path(stated).exists():
        return stated
    if cached := re.search(r"models--([\w.-]+?)--([\w.-]+)", str(run.directory.resolve())):
        return f"{cached[1]}/{cached[2]}"
    return run.directory.resolve().name


def card(run: Run, base: str, dtype: str, kind: str) -> str:
    """The text of the card.

    Args:
      base: name of the base. dtype: of the tensors, in words. kind: of the export: "adapter" or "model".
    """
    config = run.config
    names = dict.fromkeys([*_PAPERS.get(config.method.name, ()), *_PAPERS.get(config.context.name, ())])
    papers = [f"[{name}](https://arxiv.org/abs/{_ARXIV[name]})" for name in names]
    about = (sys.modules[type(config.method).__module__].__doc__ or config.method.name).split("\n\n")[0]
    head = ["---", *([f"base_model: {base}"] if "/" in base else []), "pipeline_tag: text-generation"]
    head += [f"library_name: {'peft' if kind == 'adapter' else 'transformers'}"]
    head += ["tags:", "- jopsd", f"- {config.method.name}", *(["- lora"] if config.lora else []), "---"]
    teacher = f"{config.teacher.kind}; reads context `{config.context.name}`"
    facts = {
        "Base model": base,
        "Method": f"`{config.method.name}`. {' '.join(about.split())}",
        "Papers": ", ".join(papers) or "none",
        "Teacher": teacher if config.method.teacher_views else "",
        "Data": f"{config.data.named}, split {config.data.split}",
        "Trained": f"step {run.step} of {config.train.steps}, {config.train.batch_size} prompts x {config.sampling.n} "
        f"rollouts per step, learning rate {config.optimizer.learning_rate:g}, seed {config.seed}",
        "Parameters": f"LoRA of rank {config.lora.rank} and alpha {config.lora.alpha:g}" if config.lora else "all",
        "Tensors": dtype,
        "Made with": f"jopsd {__version__}",
    }
    lines = [f"- **{name}**: {value}" for name, value in facts.items() if value]
    title = f"# {base.rpartition('/')[2]}, {config.method.name}{' (adapter)' if kind == 'adapter' else ''}"
    blocks = ["\n".join(head), title, "\n".join(lines), "## Evaluation", _evaluation(run)]
    blocks += ["## Config", f"```yaml\n{to_yaml(config).rstrip()}\n```"]
    return "\n\n".join(blocks) + "\n"


def _evaluation(run: Run) -> str:
    """The run's own held-out accuracy, at the start and nearest before the step."""
    rows = [row for row in read_metrics(run.path) if "eval/accuracy" in row and row["step"] <= run.step]
    if not rows or run.config.eval is None:
        return "The run evaluated nothing."
    lines = [
        f"| {row['step']} | {100 * row['eval/accuracy']:.1f} % | {100 * row['eval/accuracy_low']:.1f} to "
        f"{100 * row['eval/accuracy_high']:.1f} % |"
        for row in {rows[0]["step"]: rows[0], rows[-1]["step"]: rows[-1]}.values()
    ]
    asked = f"Held-out accuracy on {run.config.eval.data.named}, {run.config.eval.samples} sample(s) per problem:"
    return "\n".join([asked, "", "| step | accuracy | 95% CI |", "|---|---|---|", *lines])
