"""The whole configuration: schema, `extends:`, dotted overrides, and errors that name the key and the fix.

    config = load_config("configs/quickstart.yaml", ["optimizer.learning_rate=1e-3", "seed=2"])

`extends: other.yaml` (one path or a list, relative to the file) is read first and merged key by key; a mapping whose
`name` differs from the one it overrides replaces it whole. Every config resolves to one explicit YAML.
"""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from jopsd.contexts import ContextConfig
from jopsd.methods import MethodConfig
from jopsd.models.lora import TARGETS

PositiveInt = Annotated[int, Field(ge=1)]
Temperature = Annotated[float, Field(ge=0)]


class ConfigError(ValueError):
    """A config that cannot be used; the message names the key, the value and the fix."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Model(Section):
    """The student's initial weights, which are also the teacher's.

    path: a Hugging Face model directory, or `builtin:sums`, the small model that ships with jopsd.
    param_dtype: null is float32 when all parameters train, else the computation dtype.
    """

    path: str
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    param_dtype: Literal["bfloat16", "float32"] | None = None
    remat: Literal["none", "dots", "full"] = "full"
    attention: str = "xla"


class Lora(Section):
    """Low-rank adapters; without this section all parameters train."""

    rank: PositiveInt = 64
    alpha: Annotated[float, Field(gt=0)] = 128.0
    targets: tuple[str, ...] = TARGETS


class Reading(Section):
    """How a prompt is rendered. thinking: the template's `enable_thinking` flag; null leaves it to the template.

    close_think: end a prompt that the template leaves inside an open think tag (PW-OPSD's student patch).
    """

    thinking: bool | None = None
    close_think: bool = False


class Teacher(Reading):
    """kind: `fixed` is the initial model (with LoRA, the base without its adapter); `live` the current student."""

    kind: Literal["fixed", "live"] = "fixed"


class Data(Section):
    """Rows: a file, a directory, a hub id, or a generator such as `sums:train`.

    columns: which column holds a field, where the usual names do not apply.
    on_bad_row, on_long_prompt: stop with an error before training, or leave the row out and count it.
    max_prompt_tokens: limit on every prompt, the teacher's included.
    """

    source: str
    split: str = "train"
    subset: str | None = None
    columns: dict[str, str] = {}
    limit: PositiveInt | None = None
    seed: int = 0
    on_bad_row: Literal["error", "skip"] = "error"
    on_long_prompt: Literal["error", "skip"] = "error"
    max_prompt_tokens: PositiveInt = 2048


class Sampling(Section):
    """Rollouts. n: completions per prompt. slots: rows decoded together. chunk: decode steps per host round trip."""

    backend: Literal["jetstream", "loop"] = "jetstream"
    n: PositiveInt = 1
    max_new_tokens: PositiveInt = 1024
    temperature: Temperature = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    slots: PositiveInt = 32
    chunk: PositiveInt = 16


class Reward(Section):
    """Grades completions for the logs (and for methods that use rewards). seconds: hard limit per answer."""

    name: Literal["math"] = "math"
    seconds: Annotated[float, Field(gt=0)] = 5.0
    workers: PositiveInt = 2


class Optimizer(Section):
    """AdamW. clip_norm: bound on the global gradient norm; null is off."""

    learning_rate: Annotated[float, Field(gt=0)] = 5e-6
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    b1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    b2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip_norm: Annotated[float, Field(gt=0)] | None = 1.0


class Train(Section):
    """steps: optimiser steps. batch_size: prompts per step. micro_batch_size: rollouts per backward pass; null is all.

    token_chunk: tokens per pass of the vocabulary kernel. pad_to: widths are multiples of this.
    on_nonfinite: a loss or gradient that is not finite stops the run, or skips that update and counts it.
    """

    steps: PositiveInt = 150
    batch_size: PositiveInt = 32
    micro_batch_size: PositiveInt | None = None
    token_chunk: PositiveInt = 1024
    pad_to: PositiveInt = 64
    on_nonfinite: Literal["error", "skip"] = "error"


class Evaluation(Reading):
    """Held-out accuracy during training. every: steps between evaluations; the first and last are always done."""

    data: Data
    every: PositiveInt = 25
    samples: PositiveInt = 1
    max_new_tokens: PositiveInt = 1024
    temperature: Temperature = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    seed: int = 0


class Checkpoint(Section):
    """every: steps between saves; the last step is always saved. keep: how many to keep; null keeps all."""

    every: PositiveInt = 25
    keep: PositiveInt | None = 3


class Log(Section):
    """every: steps between lines. samples_every: steps between dumps of rollouts. samples: rollouts per dump."""

    every: PositiveInt = 1
    samples_every: PositiveInt = 25
    samples: PositiveInt = 4
    tensorboard: bool = True


class Mesh(Section):
    """Devices along each axis; -1 (once) takes what is left."""

    data: int = 1
    fsdp: int = -1
    tensor: int = 1


class Config(Section):
    output_dir: str
    seed: int = 0
    model: Model
    lora: Lora | None = None
    method: MethodConfig
    context: ContextConfig = ContextConfig()
    student: Reading = Reading()
    teacher: Teacher = Teacher()
    data: Data
    sampling: Sampling = Sampling()
    reward: Reward | None = Reward()
    optimizer: Optimizer = Optimizer()
    train: Train = Train()
    eval: Evaluation | None = None
    checkpoint: Checkpoint = Checkpoint()
    log: Log = Log()
    mesh: Mesh = Mesh()

    @model_validator(mode="after")
    def _sections_agree(self):
        if self.method.trains_on == "solution" and self.sampling.n != 1:
            raise ValueError(
                f"method {self.method.name} does not sample, so sampling.n must be 1, got {self.sampling.n}"
            )
        rows, micro = self.rows_per_step, self.micro_rows
        if rows % micro:
            raise ValueError(
                f"train.micro_batch_size {micro} does not divide the {rows} rollouts of a step "
                f"(train.batch_size {self.train.batch_size} x sampling.n {self.sampling.n})"
            )
        if self.sampling.temperature == 0 and self.method.trains_on == "rollouts":
            raise ValueError("sampling.temperature 0 is greedy: training rollouts must be drawn, use a value above 0")
        return self

    @property
    def rows_per_step(self) -> int:
        return self.train.batch_size * self.sampling.n

    @property
    def micro_rows(self) -> int:
        return self.train.micro_batch_size or self.rows_per_step


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML config, applies `a.b=value` overrides, validates.

    Raises:
      ConfigError: a missing or malformed file, a cycle of `extends`, an override that is not `key=value`, an unknown
        key (with the nearest real one), a value of the wrong type or out of range.
    """
    tree = _read(Path(path), ())
    for override in overrides:
        tree = _merge(tree, _parse_override(override))
    return validate_config(tree, str(path))


def validate_config(tree: dict, where: str) -> Config:
    """A `Config` from a nested dict; `where` names its origin in errors."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        lines = [f"  {_describe(problem)}" for problem in error.errors()]
        raise ConfigError(f"{where} is not a usable config:\n" + "\n".join(lines)) from None


def to_yaml(config: Config) -> str:
    """The fully explicit YAML of a config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read(path: Path, seen: tuple[Path, ...]) -> dict:
    resolved = path.resolve()
    if resolved in seen:
        raise ConfigError("`extends` runs in a circle: " + " -> ".join(p.name for p in (*seen, resolved)))
    if not path.is_file():
        origin = f" (named by `extends` in {seen[-1]})" if seen else ""
        raise ConfigError(f"config file {path} does not exist{origin}")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold keys and values, not a {type(tree).__name__}")
    parents = tree.pop("extends", [])
    merged: dict = {}
    for parent in [parents] if isinstance(parents, str) else parents:
        merged = _merge(merged, _read(path.parent / parent, (*seen, resolved)))
    return _merge(merged, tree)


def _merge(base: dict, over: dict) -> dict:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        same_kind = isinstance(old, dict) and isinstance(value, dict)
        renamed = same_kind and "name" in value and old.get("name") not in (None, value["name"])
        merged[key] = _merge(old, value) if same_kind and not renamed else value
    return merged


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-3 as text; people who type overrides mean a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _parse_override(text: str) -> dict:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override {text!r} must look like section.key=value")
    try:
        tree: Any = yaml.load(value, _Loader)
    except yaml.YAMLError:
        tree = value
    for part in reversed(key.strip().split(".")):
        tree = {part: tree}
    return tree


def _describe(problem: dict) -> str:
    """One line for one pydantic error: the dotted key, what is wrong, and the nearest real key."""
    location = [str(part) for part in problem["loc"]]
    known = _known_keys(location[:-1])
    # Tagged unions put the tag into the location; it is not a key of the file.
    shown = ".".join(part for i, part in enumerate(location) if not _is_tag(location, i))
    kind = problem["type"]
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        return f"unknown key `{shown}`" + (f"; did you mean `{near[0]}`?" if near else f"; known: {', '.join(known)}")
    if kind == "missing":
        return f"`{shown}` is required"
    message = problem["msg"].removeprefix("Value error, ")
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return f"`{shown}.name`: {message}"
    if not shown:
        return message
    return f"`{shown}` = {problem['input']!r}: {message}" if kind != "value_error" else f"`{shown}`: {message}"


def _is_tag(location: list[str], i: int) -> bool:
    return i == 1 and location[0] == "method"


def _known_keys(location: list[str]) -> list[str]:
    """Keys allowed at a place in the schema, for hints."""
    models: list[type[BaseModel]] = [Config]
    for i, part in enumerate(location):
        if _is_tag(location, i):
            models = [m for m in models if m.model_fields["name"].default == part] or models
            continue
        fields = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        models = [t for field in fields for t in _models_in(field)]
    return sorted({key for m in models for key in m.model_fields})


def _models_in(annotation) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for argument in get_args(annotation) for m in _models_in(argument)]
