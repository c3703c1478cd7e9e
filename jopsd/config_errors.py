"""Says what is wrong with a config, a line per fault: the dotted key, the fault, the key or value that was meant."""

import difflib
from collections.abc import Iterator, Sequence
from typing import get_args

from pydantic import BaseModel

from jopsd.schema import Config

# What TRL, verl, PEFT and the papers call our keys.
ALIASES = {
    "method.alpha": "beta jsd_beta",
    "method.kl_coef": "beta kl_loss_coef",
    "optimizer.learning_rate": "lr",
    "optimizer.schedule": "lr_scheduler lr_scheduler_type scheduler",
    "optimizer.warmup_steps": "warmup lr_warmup_steps",
    "optimizer.b1": "beta1 adam_beta1",
    "optimizer.b2": "beta2 adam_beta2",
    "optimizer.eps": "epsilon adam_epsilon",
    "optimizer.clip_norm": "max_grad_norm grad_clip gradient_clip clip_grad",
    "lora.rank": "r lora_r lora_rank",
    "lora.alpha": "lora_alpha",
    "lora.targets": "target_modules lora_target_modules",
    "lora.rslora": "use_rslora",
    "train.steps": "max_steps num_steps total_steps total_training_steps",
    "train.epochs": "num_epochs num_train_epochs total_epochs",
    "train.batch_size": "train_batch_size global_batch_size",
    "train.mini_batch_size": "ppo_mini_batch_size",
    "train.micro_batch_size": "gradient_accumulation_steps per_device_train_batch_size ppo_micro_batch_size",
    "train.passes": "ppo_epochs num_iterations",
    "sampling.n": "num_generations num_samples rollout_n group_size",
    "sampling.max_new_tokens": "max_tokens max_completion_length max_response_length response_length",
    "data.max_prompt_tokens": "max_prompt_length prompt_length",
    "data.source": "dataset dataset_name train_files train_file",
    "data.split": "dataset_split dataset_train_split",
    "data.subset": "dataset_config dataset_config_name",
    "model.path": "model_name model_id base_model model_name_or_path",
    "model.dtype": "torch_dtype precision bf16 fp16",
    "model.remat": "gradient_checkpointing",
    "model.attention": "attn_implementation",
    "student.thinking": "enable_thinking",
    "teacher.path": "teacher_model teacher_model_name_or_path teacher_model_path",
    "checkpoint.every": "save_steps save_freq save_every",
    "checkpoint.keep": "save_total_limit max_ckpt_to_keep",
    "eval.every": "eval_steps test_freq eval_every",
    "log.every": "logging_steps log_every",
    "output_dir": "output run_dir out_dir save_dir",
}
_VALUES = {
    "sampling.backend": {"vllm": "openai", "sglang": "openai", "grpc": "remote", "hf": "loop"},
    "model.dtype": {"fp32": "float32", **dict.fromkeys(("bf16", "fp16", "float16", "half"), "bfloat16")},
    "teacher.kind": {**dict.fromkeys(("frozen", "base", "initial", "reference"), "fixed"), "student": "live"},
    "optimizer.schedule": {"constant_with_warmup": "constant", "cosine_with_warmup": "cosine", "none": "constant"},
}


def describe(problem: dict) -> str:
    """One line for one pydantic error."""
    location = [str(part) for part in problem["loc"]]
    # Tagged unions put the tag into the location; it is not a key of the file.
    shown = ".".join(part for i, part in enumerate(location) if not _is_tag(location, i))
    kind = problem["type"]
    if kind == "extra_forbidden":
        return f"unknown key `{shown}`{_meant(location)}"
    if kind == "missing":
        return f"`{shown}` is required"
    message = problem["msg"].removeprefix("Value error, ")
    if kind == "union_tag_not_found":
        return f"`{shown}.name` is required; known: {', '.join(_names_of(location))}"
    if kind == "union_tag_invalid":
        given = problem.get("ctx", {}).get("tag")
        return f"`{shown}.name` = {given!r} is not known; known: {', '.join(_names_of(location))}"
    if not shown:
        return message
    if kind == "value_error":
        return f"`{shown}`: {message}"
    return f"`{shown}` = {problem['input']!r}: {message}{_value_meant(shown, kind, problem['input'])}"


def known_keys(location: Sequence[str]) -> list[str]:
    """Keys allowed at a place in the schema; of a tagged union, those of the name that stands in the location."""
    models: list[type[BaseModel]] = [Config]
    for i, part in enumerate(location):
        if part.isdigit():  # a place in a list
            continue
        if _is_tag(location, i):
            models = [m for m in models if m.model_fields["name"].default == part] or models
            continue
        fields = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        models = [t for field in fields for t in _models_in(field)]
    return sorted({key for m in models for key in m.model_fields})


def _meant(location: Sequence[str]) -> str:
    """What an unknown key was probably meant to be, as the end of its error."""
    *section, name = location
    known = known_keys(section)
    plain = [part for i, part in enumerate(section) if not _is_tag(location, i)]
    beside = lambda key: key.removeprefix(".".join([*plain, ""]))  # noqa: E731
    called = [beside(key) for key, aliases in ALIASES.items() if name in aliases.split()]
    if fitting := [key for key in called if key in known] or [key for key in called if "." in key]:
        return f"; did you mean `{fitting[0]}`?"
    elsewhere = [key for key in all_keys() if key.rpartition(".")[2] == name and beside(key) not in known]
    if elsewhere and elsewhere[0].split(".")[0] == (plain or [""])[0] in ("method", "context"):
        owners = [tag for tag in _names_of(plain) if name in known_keys([*plain, tag])]
        return f"; it belongs to {plain[0]} {', '.join(owners)}"
    if elsewhere:
        return f"; did you mean {' or '.join(f'`{key}`' for key in elsewhere)}?"
    if near := difflib.get_close_matches(name, known, n=1, cutoff=0.5):
        return f"; did you mean `{near[0]}`?"
    by_leaf = {key.rpartition(".")[2]: key for key in all_keys()}
    if near := difflib.get_close_matches(name, by_leaf, n=1, cutoff=0.8):
        return f"; did you mean `{by_leaf[near[0]]}`?"
    return f"; known: {', '.join(known)}"


def _value_meant(key: str, kind: str, value) -> str:
    """What a value was probably meant to be, as the end of its error."""
    if kind == "literal_error" and (ours := _VALUES.get(key, {}).get(str(value).lower())) is not None:
        return f"; {value} is nearest to {ours}"
    if kind in ("model_attributes_type", "model_type") and isinstance(value, str) and key in ("method", "context"):
        return f"; write {key}.name={value}"
    return ""


def all_keys() -> list[str]:
    """Every dotted key of the schema, sections included, whatever method or context it belongs to."""

    def below(models: Sequence[type[BaseModel]], prefix: str) -> Iterator[str]:
        for name in dict.fromkeys(name for m in models for name in m.model_fields):
            yield f"{prefix}{name}"
            inside = [t for m in models if name in m.model_fields for t in _models_in(m.model_fields[name].annotation)]
            if name != "mix":  # its keys are those of the section around it
                yield from below(inside, f"{prefix}{name}.")

    return list(below([Config], ""))


def _is_tag(location: Sequence[str], i: int) -> bool:
    return i == 1 and location[0] in ("method", "context") and location[1] in _names_of(location)


def _names_of(location: Sequence[str]) -> list[str]:
    """The names a tagged union goes by."""
    union = [m for m in _models_in(Config.model_fields[location[0]].annotation) if "name" in m.model_fields]
    return sorted(m.model_fields["name"].default for m in union)


def _models_in(annotation) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for argument in get_args(annotation) for m in _models_in(argument)]
