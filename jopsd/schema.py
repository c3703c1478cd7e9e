"""The schema of a config: every section, every key, every default, and the checks that need more than one key."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from jopsd.contexts import ContextConfig, SolutionContext
from jopsd.methods import MethodConfig
from jopsd.models.attention import ATTENTION
from jopsd.models.lora import TARGETS
from jopsd.paths import FilePath, expand
from jopsd.rewards.grader import VERIFIERS

PositiveInt = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Temperature = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Model(Section):
    """The student's initial weights, which are also the teacher's.

    path: a Hugging Face model directory, a hub id such as `Qwen/Qwen3-0.6B`, or `builtin:sums`, the small model that
    ships with jopsd.
    param_dtype: null is float32 when all parameters train, else the computation dtype. Parameters that train in
    bfloat16 have a float32 optimiser, and updates rounded up or down at random, so that small ones add up.
    attention: `auto` is cudnn or splash where GPU or TPU and shapes allow, else xla.
    """

    path: FilePath
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    param_dtype: Literal["bfloat16", "float32"] | None = None
    remat: Literal["none", "dots", "full"] = "full"
    attention: Literal[ATTENTION] = "auto"


class Lora(Section):
    """Low-rank adapters; without this section all parameters train.

    rslora: scale by alpha / sqrt(rank), not alpha / rank.
    path: a PEFT adapter directory to start from, of this rank, scale and targets; null starts from no change. The base
    without it stays the `fixed` teacher.
    """

    rank: PositiveInt = 64
    alpha: Annotated[float, Field(gt=0)] = 128.0
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = TARGETS
    rslora: bool = False
    path: FilePath | None = None

    @field_validator("targets")
    @classmethod
    def _are_projections(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [target for target in targets if target not in TARGETS]:
            short = dict.fromkeys(target.removesuffix("_proj") for target in targets)
            meant = f"; did you mean [{', '.join(short)}]?" if set(short) <= set(TARGETS) else ""
            raise ValueError(f"{unknown[0]} is not one of {', '.join(TARGETS)}{meant}")
        return targets


class Reading(Section):
    """How a prompt is rendered. thinking: the template's `enable_thinking` flag; null leaves it to the template.

    close_think: end a prompt that the template leaves inside an open think tag (PW-OPSD's student patch).
    """

    thinking: bool | None = None
    close_think: bool = False


class Teacher(Reading):
    """The weights that re-score, and how they read.

    kind: `fixed` is the initial model (with LoRA, the base without its adapter); `live` the current student; `ema` its
    float32 moving average; `snapshot` a copy taken now and then; `trust_region` mixes the logits of the initial model
    and the current student; `external` is another model.
    decay (ema, 0.95): share of the old average kept. start (ema, initial): `first_update` begins with the weights after
    the first update, as OPSD's code does. every (ema 1, snapshot 10): student updates between teacher updates.
    mix (trust_region, 0.05): the student's share of the logits.
    path (external): model directory; or models: directories by the label that each row has as its teacher
    (`extra_info.opd_teacher`). Their vocabulary must be the student's.
    max_prompt_tokens: limit on the teacher's prompts; null is data.max_prompt_tokens.
    """

    kind: Literal["fixed", "live", "ema", "snapshot", "trust_region", "external"] = "fixed"
    decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    start: Literal["initial", "first_update"] | None = None
    every: PositiveInt | None = None
    mix: Annotated[float, Field(gt=0, lt=1)] | None = None
    path: FilePath | None = None
    models: dict[Annotated[str, Field(pattern=r"^[\w.-]+$")], FilePath] | None = None
    max_prompt_tokens: PositiveInt | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_kind(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        kind = given.get("kind", "fixed")
        for key, defaults in TEACHER_KEYS.items():
            if given.get(key) is not None and kind not in defaults:
                raise ValueError(
                    f"teacher.{key} belongs to kind {' or '.join(defaults)}, not to {kind}; remove it or set it to null"
                )
        if kind == "external" and bool(given.get("path")) == bool(given.get("models")):
            raise ValueError("teacher.kind external needs teacher.path, or teacher.models with one directory per label")
        fill = {key: defaults[kind] for key, defaults in TEACHER_KEYS.items() if kind in defaults}
        return {**given, **{key: value for key, value in fill.items() if given.get(key) is None}}

    @property
    def external(self) -> dict[str, str]:
        """Directories of external teachers by label; a single one is labelled ""."""
        return self.models or ({"": self.path} if self.path else {})


# Keys of `Teacher` that only some kinds have, with their defaults.
TEACHER_KEYS: dict[str, dict[str, Any]] = {
    "decay": {"ema": 0.95},
    "start": {"ema": "initial"},
    "every": {"ema": 1, "snapshot": 10},
    "mix": {"trust_region": 0.05},
    "path": {"external": None},
    "models": {"external": None},
}


class Reference(Section):
    """The model of KL penalties and of G-OPD's extrapolation. path: a model directory; null is the initial model."""

    path: FilePath | None = None


class Source(Section):
    """Where rows come from: a file, a directory, a hub id, or a generator such as `sums:train`.

    columns: which column holds a field, where the layout and the usual names do not apply.
    limit: rows read. seed: of a generator.
    difficulty: [low, high], both included; rows outside are left out and counted.
    verifier: for reward.name auto, of rows whose data set does not say.
    """

    source: FilePath | None
    split: str = "train"
    subset: str | None = None
    columns: dict[str, str] = {}
    limit: PositiveInt | None = None
    seed: Seed = 0
    difficulty: tuple[float, float] | None = None
    verifier: Literal[VERIFIERS] | None = None

    @field_validator("difficulty")
    @classmethod
    def _is_a_band(cls, band: tuple[float, float] | None) -> tuple[float, float] | None:
        if band is not None and band[0] > band[1]:
            raise ValueError(f"the lower end {band[0]:g} comes first, and is above {band[1]:g}")
        return band


class MixedSource(Source):
    """One source of a mixture. weight: its share of the rows trained on, relative to the other weights."""

    source: FilePath
    weight: Annotated[float, Field(gt=0, strict=True)] = 1.0


class Data(Source):
    """Rows: of one source, or of a mixture.

    mix: sources with their weights, instead of `source`. What stands beside it (split, columns, ...) holds for each
    source that does not say otherwise.
    on_bad_row, on_long_prompt: stop with an error before training, or leave the row out and count it.
    max_prompt_tokens: limit on every prompt, the teacher's included.
    """

    mix: tuple[MixedSource, ...] | None = None
    on_bad_row: Literal["error", "skip"] = "error"
    on_long_prompt: Literal["error", "skip"] = "error"
    max_prompt_tokens: PositiveInt = 2048

    @model_validator(mode="before")
    @classmethod
    def _sources_share_keys(cls, given: Any) -> Any:
        if not isinstance(given, dict) or not isinstance(given.get("mix"), list | tuple):
            return given
        shared = {key: given[key] for key in Source.model_fields if key != "source" and key in given}
        mix = [{**shared, **part} if isinstance(part, dict) else part for part in given["mix"]]
        return {"source": None, **given, "mix": mix}

    @model_validator(mode="after")
    def _one_or_a_mixture(self):
        if self.source is not None and self.mix is not None:
            raise ValueError(f"source {self.source!r} and mix are both given; remove one, or set it to null")
        if self.source is None and not self.mix:
            raise ValueError("no source is given; set source, or mix to a list of sources with weights")
        return self

    def parts(self, key: str) -> list[tuple[str, "Data", float]]:
        """Each source as data of its own, with the key that it stands under, given this section's, and its weight."""
        if self.mix is None:
            return [(key, self, 1.0)]
        return [
            (
                f"{key}.mix[{number}]",
                self.model_copy(update={**part.model_dump(exclude={"weight"}), "mix": None}),
                part.weight,
            )
            for number, part in enumerate(self.mix)
        ]

    @property
    def named(self) -> str:
        """The source, or the sources with their weights, in words."""
        if self.mix is None:
            return str(self.source)
        return " + ".join(f"{part.source} (weight {part.weight:g})" for part in self.mix)


class Drawing(Section):
    """How completions are drawn. temperature 0 is greedy; top_p 1 and top_k 0 keep every token."""

    max_new_tokens: PositiveInt = 1024
    temperature: Temperature = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0


class Access(Section):
    """How sampling servers are reached.

    token_file: holds the secret they ask for. ca_file: certificate (PEM) that theirs is checked against; with it the
    connection is TLS. timeout: seconds in which a server must come up, or take new weights.
    """

    token_file: FilePath | None = None
    ca_file: FilePath | None = None
    timeout: Annotated[float, Field(gt=0)] = 120.0


class Sampling(Drawing):
    """Rollouts. n: completions per prompt. slots: rows decoded together. chunk: decode steps per host round trip.

    weights: `int8` rounds the projections of the sampler's copy; what that does to log-probabilities is logged as
    sampler_gap. Evaluation draws from the exact weights.
    backend: `jetstream` (in this process; where there are several, each on its own devices) or `loop` (the devices of
    all processes as one); `remote` samples from servers of `python -m jopsd.serve`, `openai` from vLLM or SGLang.
    cache_gb: gigabytes of keys and values on all devices together; null is enough for slots of 0.4 of the longest row,
    at least 256 tokens each. Where they run out, the youngest rollout is put back and drawn again: the same tokens.
    tensor: devices that split each layer while sampling. `mesh` is the trainer's layout, on its arrays; null is that
    where no weights are gathered over fsdp or context, else a copy split over as many as divide the key-value heads.
    servers (remote, openai): their addresses, host:port or URL. access: how they are reached.
    ahead: 1 draws the rollouts of the next step while this one's update runs, so from weights one version older; it
    needs method.correction.
    """

    backend: Literal["jetstream", "loop", "remote", "openai"] = "jetstream"
    weights: Literal["exact", "int8"] = "exact"
    n: PositiveInt = 1
    slots: PositiveInt = 32
    chunk: PositiveInt = 16
    cache_gb: Annotated[float, Field(gt=0)] | None = None
    tensor: PositiveInt | Literal["mesh"] | None = None
    servers: tuple[str, ...] = ()
    access: Access = Access()
    ahead: Literal[0, 1] = 0

    @property
    def cache_bytes(self) -> int | None:
        """`cache_gb` in bytes."""
        return None if self.cache_gb is None else int(self.cache_gb * 1e9)

    @property
    def served(self) -> bool:
        """Whether rollouts come from servers, and not from devices of this run."""
        return self.backend in ("remote", "openai")


class CodeReward(Section):
    """Programs. score: `sparse` is 1 where all tests pass; `dense` the share of tests that pass.

    feedback: what a teacher may read of failed tests: `public` those that the problem shows; `all` hidden ones too.
    memory_mb: of one program, beyond what the interpreter takes.
    budget: seconds for all tests of a program together (four times what a reference solution takes, if that is more);
    tests not run by then count as out of time.
    """

    score: Literal["sparse", "dense"] = "sparse"
    feedback: Literal["public", "all"] = "public"
    memory_mb: Annotated[int, Field(ge=64)] = 1024
    budget: Annotated[float, Field(gt=0)] = 60.0


class Reward(Section):
    """Grades completions for the logs (and for methods that use rewards).

    name: what is compared with a row's answer: `math` the value in the last box; `knights` an assignment of knights and
    knaves in it; `choice` the letter between answer tags; `tools` the calls of tools; `code` runs a program on the
    row's tests, in a sandbox. `auto` is for each row what its data set says.
    seconds (math): processor time per answer. workers (math, code): processes; null is as many as there are cores.
    code: how programs are scored and limited. unsafe: run programs even where this host cannot keep them in.
    """

    name: Literal["auto", *VERIFIERS] = "math"
    seconds: Annotated[float, Field(gt=0)] = 5.0
    workers: PositiveInt | None = None
    code: CodeReward = CodeReward()
    unsafe: bool = False


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


class Profile(Section):
    """A trace of some steps by `jax.profiler`, in `output_dir/profile`. start: the first of them. steps: how many."""

    start: PositiveInt = 3
    steps: PositiveInt = 1


class Train(Section):
    """steps: batches of rollouts to train on (150), or epochs: times through the data; one of them, the other is null.
    batch_size: prompts per step. mini_batch_size: prompts per optimiser update; null is all, one on-policy update.
    passes: times that a step's rollouts are gone through. micro_batch_size: rollouts per backward pass; null is all.
    packing: sequences share rows without padding between them; false gives each rollout a row. micro_batch_tokens
    (packing): instead of micro_batch_size, the most columns that a device reads in one backward pass, student's or
    teacher's; as many passes are made as that takes.
    token_chunk: tokens per pass of the vocabulary kernel; null is 1,024, on a CPU 256.
    pad_to: widths are multiples of this.
    on_nonfinite: a loss or gradient that is not finite stops the run, or skips that update and counts it.
    profile: steps to trace; null is none.
    """

    steps: PositiveInt | None = None
    epochs: PositiveInt | None = None
    batch_size: PositiveInt = 32
    mini_batch_size: PositiveInt | None = None
    passes: PositiveInt = 1
    micro_batch_size: PositiveInt | None = None
    packing: bool = True
    micro_batch_tokens: PositiveInt | None = None
    token_chunk: PositiveInt | None = None
    pad_to: PositiveInt = 64
    on_nonfinite: Literal["error", "skip"] = "error"
    profile: Profile | None = None

    @model_validator(mode="before")
    @classmethod
    def _length(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        steps, epochs = given.get("steps"), given.get("epochs")
        if steps is not None and epochs is not None:
            raise ValueError(f"steps {steps} and epochs {epochs} both say how long to train; set one of them to null")
        return {**given, "steps": 150} if steps is None and epochs is None else given

    @model_validator(mode="after")
    def _one_kind_of_micro_batch(self):
        if self.micro_batch_tokens is not None and self.micro_batch_size is not None:
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} and micro_batch_tokens {self.micro_batch_tokens} are both "
                "given; set one of them to null"
            )
        if self.micro_batch_tokens is not None and not self.packing:
            raise ValueError("micro_batch_tokens is for packed rows; set packing: true, or use micro_batch_size")
        return self


class Evaluation(Reading, Drawing):
    """Held-out accuracy during training. every: steps between evaluations; the first and last are always done.

    template: the student's turn, over {problem} and {instruction}; null is the one of training.
    """

    data: Data
    template: str | None = None
    every: PositiveInt = 25
    samples: PositiveInt = 1
    seed: Seed = 0


class Checkpoint(Section):
    """every: steps between saves; the last step is always saved. keep: how many to keep; null keeps all.

    accept: what may differ, when a run goes on, from what it was trained on before: rows, template (the tokenizer
    too), weights (of the initial model, the reference, teachers).
    """

    every: PositiveInt = 25
    keep: PositiveInt | None = 3
    accept: tuple[Literal["rows", "template", "weights"], ...] = ()


class Log(Section):
    """every: steps between lines. samples_every: steps between dumps of rollouts. samples: rollouts per dump."""

    every: PositiveInt = 1
    samples_every: PositiveInt = 25
    samples: PositiveInt = 4
    tensorboard: bool = True


class Mesh(Section):
    """Devices along each axis; -1 (once) takes what is left.

    context: splits the columns of sequences, for completions too long for one device.
    slices: groups of devices with fast links inside and the data-centre network between; only `data` spans them.
    """

    data: int = 1
    fsdp: int = -1
    tensor: int = 1
    context: PositiveInt = 1
    slices: PositiveInt = 1


class Config(Section):
    output_dir: Annotated[str, Field(min_length=1), AfterValidator(expand)]
    seed: Seed = 0
    model: Model
    lora: Lora | None = None
    method: MethodConfig
    context: ContextConfig = SolutionContext()
    student: Reading = Reading()
    teacher: Teacher = Teacher()
    reference: Reference = Reference()
    data: Data
    sampling: Sampling = Sampling()
    reward: Reward | None = Reward()
    optimizer: Optimizer = Optimizer()
    train: Train = Train()
    eval: Evaluation | None = None
    checkpoint: Checkpoint = Checkpoint()
    log: Log = Log()
    mesh: Mesh = Mesh()

    @model_validator(mode="before")
    @classmethod
    def _context_has_a_name(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("context"), dict):
            return {**given, "context": {"name": "solution", **given["context"]}}
        return given

    @field_validator("output_dir")
    @classmethod
    def _is_a_folder(cls, output_dir: str) -> str:
        if "://" in output_dir:
            raise ValueError(f"{output_dir} is no folder; mount the bucket (gcsfuse) and give the folder it appears as")
        return output_dir

    @model_validator(mode="after")
    def _sections_agree(self):
        if self.method.trains_on == "solution" and self.sampling.n != 1:
            raise ValueError(
                f"method {self.method.name} does not sample, so sampling.n must be 1, got {self.sampling.n}"
            )
        self._check_batches()
        if self.sampling.temperature == 0 and self.method.trains_on == "rollouts":
            raise ValueError("sampling.temperature 0 is greedy: training rollouts must be drawn, use a value above 0")
        self._check_sampling()
        self._check_method()
        if self.method.teacher_views:
            self._check_context()
        if self.eval is not None and self.reward is None:
            raise ValueError("eval grades completions, so it needs a reward; remove reward: null, or set eval: null")
        return self

    def _check_batches(self):
        prompts = self.train.mini_batch_size or self.train.batch_size
        if self.train.batch_size % prompts:
            raise ValueError(
                f"train.mini_batch_size {prompts} does not divide train.batch_size {self.train.batch_size} (prompts)"
            )
        if self.rows_per_update % self.micro_rows:
            raise ValueError(
                f"train.micro_batch_size {self.micro_rows} does not divide the {self.rows_per_update} rollouts of an "
                f"update ({prompts} prompts x sampling.n {self.sampling.n})"
            )

    def _check_sampling(self):
        sampling, served = self.sampling, self.sampling.served
        if served and not sampling.servers:
            raise ValueError(f"sampling.backend {sampling.backend} needs sampling.servers, a list of addresses")
        if sampling.servers and not served:
            raise ValueError(f"sampling.servers: backend {sampling.backend} asks none; set it to remote or openai")
        if served and sampling.weights == "int8":
            raise ValueError("sampling.weights int8 is for sampling in this process; remove it, or sampling.servers")
        if sampling.ahead and self.method.correction is None:
            raise ValueError(
                "sampling.ahead 1 trains on rollouts of older weights; set method.correction: {} so that they are "
                "weighted for it, or sampling.ahead: 0"
            )
        if sampling.ahead and self.method.trains_on != "rollouts":
            raise ValueError(f"method {self.method.name} does not sample, so sampling.ahead must be 0")

    def _check_method(self):
        method, name = self.method, self.method.name
        if method.uses_reward and self.reward is None:
            raise ValueError(f"method {name} learns from rewards; remove reward: null")
        if method.uses_reward and self.sampling.n < 2:
            raise ValueError(f"method {name} compares rollouts of one prompt: set sampling.n to 2 or more")
        compares = method.at_sampling_temperature or method.correction
        if compares and method.temperature != self.sampling.temperature:
            raise ValueError(
                f"method {name} compares with the policy that sampled: method.temperature {method.temperature} "
                f"and sampling.temperature {self.sampling.temperature} must be equal"
            )

    def _check_context(self):
        """The context must give the method what it reads, and have what it is made from."""
        method, context = self.method.name, self.context
        lacking = [view for view in self.method.teacher_views if view not in context.views]
        if lacking:
            raise ValueError(
                f"method {method} needs the view {lacking[0]!r}, which context {context.name} does not give; "
                "use context.name: hints with context.negatives of 1 or more"
            )
        if "negative" in context.views and "negative" not in self.method.teacher_views:
            raise ValueError(
                f"method {method} reads no wrong hints, and rollouts without one would be left out for nothing: set "
                "context.negatives to 0"
            )
        if context.reads_attempts and self.reward is None:
            raise ValueError(f"context {context.name} tells right rollouts from wrong ones; remove reward: null")
        if context.needs_group and self.sampling.n < 2:
            raise ValueError(
                f"context {context.name} shows the teacher other rollouts of a prompt: set sampling.n to 2 or more"
            )
        if context.name == "plain" and self.teacher.kind != "external":
            raise ValueError(
                f"method {method}: with context plain the teacher reads what the student reads, so it must be another "
                f"model than the student; set teacher.kind: external and teacher.path (it is {self.teacher.kind})"
            )

    @property
    def rows_per_step(self) -> int:
        return self.train.batch_size * self.sampling.n

    @property
    def rows_per_update(self) -> int:
        return (self.train.mini_batch_size or self.train.batch_size) * self.sampling.n

    @property
    def updates_per_step(self) -> int:
        return self.rows_per_step // self.rows_per_update * self.train.passes

    @property
    def micro_rows(self) -> int:
        return self.train.micro_batch_size or self.rows_per_update
