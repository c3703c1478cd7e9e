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
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Temperature = Annotated[float, Field(ge=0)]


class ConfigError(ValueError):
    """A config that cannot be used; the message names the key, the value and the fix."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


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
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = TARGETS


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
    seed: Seed = 0
    on_bad_row: Literal["error", "skip"] = "error"
    on_long_prompt: Literal["error", "skip"] = "error"
    max_prompt_tokens: PositiveInt = 2048


class Drawing(Section):
    """How completions are drawn. temperature 0 is greedy; top_p 1 and top_k 0 keep every token."""

    max_new_tokens: PositiveInt = 1024
    temperature: Temperature = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0


class Sampling(Drawing):
    """Rollouts. n: completions per prompt. slots: rows decoded together. chunk: decode steps per host round trip."""

    backend: Literal["jetstream", "loop"] = "jetstream"
    n: PositiveInt = 1
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


class Evaluation(Reading, Drawing):
    """Held-out accuracy during training. every: steps between evaluations; the first and last are always done."""

    data: Data
    every: PositiveInt = 25
    samples: PositiveInt = 1
    seed: Seed = 0


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
    output_dir: Annotated[str, Field(min_length=1)]
    seed: Seed = 0
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
        self._check_method()
        if self.eval is not None and self.reward is None:
            raise ValueError("eval grades completions, so it needs a reward; remove reward: null, or set eval: null")
        return self

    def _check_method(self):
        name = self.method.name
        if self.method.uses_reward and self.reward is None:
            raise ValueError(f"method {name} learns from rewards; remove reward: null")
        if self.method.uses_reward and self.sampling.n < 2:
            raise ValueError(f"method {name} compares rollouts of one prompt: set sampling.n to 2 or more")
        if self.method.at_sampling_temperature and self.method.temperature != self.sampling.temperature:
            raise ValueError(
                f"method {name} compares with the policy that sampled: method.temperature {self.method.temperature} "
                f"and sampling.temperature {self.sampling.temperature} must be equal"
            )

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
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise _refusal(where, [_describe(problem) for problem in error.errors()]) from None
    if flags := _flags_read_as_numbers(tree, config.model_dump()):
        raise _refusal(where, [f"`{key}` = {value}: a number is wanted, not true or false" for key, value in flags])
    return config


def to_yaml(config: Config) -> str:
    """The fully explicit YAML of a config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _refusal(where: str, faults: Sequence[str]) -> ConfigError:
    return ConfigError("\n  ".join([f"{where} is not a usable config:", *faults]))


def _flags_read_as_numbers(given, resolved, key: str = "") -> list[tuple[str, bool]]:
    """Keys given as true or false that pydantic took for 1 or 0."""
    if isinstance(given, dict) and isinstance(resolved, dict):
        inside = [(f"{key}.{name}".lstrip("."), value, resolved.get(name)) for name, value in given.items()]
        return [flag for name, value, read in inside for flag in _flags_read_as_numbers(value, read, name)]
    return [(key, given)] if isinstance(given, bool) and not isinstance(resolved, bool) else []


def _read(path: Path, seen: tuple[Path, ...]) -> dict:
    resolved = path.resolve()
    if resolved in seen:
        raise ConfigError("`extends` runs in a circle: " + " -> ".join(p.name for p in (*seen, resolved)))
    if not path.is_file():
        origin = f" (named by `extends` in {seen[-1]})" if seen else ""
        raise ConfigError(f"config file {path} does not exist{origin}")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold keys and values, not a {type(tree).__name__}")
    parents = tree.pop("extends", None) or []
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise ConfigError(f"{path}: `extends` must be a path or a list of paths, not {parents!r}")
    merged: dict = {}
    for parent in parents:
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
    """YAML 1.1 reads 1e-3 as text, where people mean a number; and of a key given twice it keeps the last."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        if twice := [key for key in keys if isinstance(key, str) and keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"key {twice[0]!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


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
        given = problem.get("ctx", {}).get("tag")
        return f"`{shown}.name` = {given!r} is not known; known: {', '.join(_names_of(location))}"
    if not shown:
        return message
    return f"`{shown}` = {problem['input']!r}: {message}" if kind != "value_error" else f"`{shown}`: {message}"


def _is_tag(location: list[str], i: int) -> bool:
    return i == 1 and location[0] == "method"


def _names_of(location: list[str]) -> list[str]:
    """The names a tagged union goes by."""
    union = [m for m in _models_in(Config.model_fields[location[0]].annotation) if "name" in m.model_fields]
    return sorted(m.model_fields["name"].default for m in union)


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
