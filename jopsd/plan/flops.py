"""Floating-point operations of a training step, counted from shapes.

Only matrix products count (2 x m x n x k); norms, rotary embeddings and softmax are left out, and so is the optimiser.
XLA's `cost_analysis` is no help: it counts the body of a scan over layers once, and knows nothing of kernels.

Axes: P prompt columns, T completion columns, D width, V vocabulary, L layers.
"""

from collections.abc import Sequence
from typing import NamedTuple

from jopsd.batch import pad_length
from jopsd.methods.method import REFERENCE
from jopsd.models.attention import FLASH
from jopsd.models.decoder import ModelConfig

# What a kernel's backward pass does in units of its forward pass: the kernels form the scores again.
_KERNEL_BACKWARD = {"splash": 3.5, "cudnn": 2.5, "blocks": 2.5}


class Reading(NamedTuple):
    """One forward pass over a view without gradient. heads: how many sets of weights read (and unembed) it."""

    view: str
    columns: int
    cfg: ModelConfig
    adapter: bool
    heads: int = 1


class Work(NamedTuple):
    """FLOPs of all devices together, of one step. prefill and decode: of the sampler."""

    update: float
    score: float
    decode: float
    prefill: float

    @property
    def training(self) -> float:
        return self.update + self.score


def projections(cfg: ModelConfig) -> int:
    """Multiply-adds per token and layer in the base's projections."""
    return sum(a * b for a, b in cfg.projections.values())


def adapter_products(cfg: ModelConfig, lora) -> int:
    """Multiply-adds per token and layer in the adapter's factors. lora: the config's section, or None."""
    return sum(lora.rank * sum(cfg.projections[name]) for name in lora.targets) if lora is not None else 0


def seen(cfg: ModelConfig, columns: int, context: int = 1) -> float:
    """Keys that an average query reads in an average layer, on the device that reads most.

    Plain XLA forms every score; kernels skip what causality and windows hide. Columns split over `context` devices
    leave the last with queries that see the most.
    """
    if cfg.attention not in FLASH:
        return columns
    full = columns * (1 - 1 / (2 * context)) + 0.5
    window = min(cfg.window or columns, columns)
    sliding = min(full, window - window * (window - 1) / (2 * columns))
    share = cfg.pattern.count("sliding") / len(cfg.pattern)
    return share * sliding + (1 - share) * full


def forward(cfg: ModelConfig, columns: int, lora=None, context: int = 1) -> float:
    """FLOPs of one row through all layers, without the output head."""
    products = projections(cfg) + adapter_products(cfg, lora)
    return cfg.num_layers * columns * (2 * products + attention(cfg, seen(cfg, columns, context)))


def attention(cfg: ModelConfig, keys: float) -> float:
    """FLOPs of one query of all heads of one layer: scores, and the weighted sum."""
    return 4 * cfg.num_heads * cfg.head_dim * keys


def trained(cfg: ModelConfig, columns: int, lora=None, context: int = 1) -> float:
    """FLOPs of one row forward and backward through all layers, with what `remat` computes again."""
    base, own = 2 * projections(cfg), 2 * adapter_products(cfg, lora)
    attend = attention(cfg, seen(cfg, columns, context))
    # A frozen kernel passes a gradient on and gets none.
    backward = base * (1 if lora else 2) + 2 * own + attend * _KERNEL_BACKWARD.get(cfg.attention, 2)
    # The last product of a layer is its result, which no gradient asks for.
    own_again = own - (2 * lora.rank * cfg.hidden_size if lora is not None and "down" in lora.targets else 0)
    last = 2 * cfg.intermediate_size * cfg.hidden_size
    # Only the adapter of "o" asks plain attention for its result again; the others ask for the weights.
    plain = cfg.attention not in FLASH and lora is not None and "o" not in lora.targets
    # What a projection gives is kept with its adapter's part in it, so what lies between the two factors is not.
    between = 2 * lora.rank * sum(cfg.projections[name][0] for name in lora.targets) if lora is not None else 0
    dots = attend / (2 if plain else 1) + between
    again = {"full": base - last + own_again + attend, "dots": dots, "none": 0}[cfg.remat]
    return cfg.num_layers * columns * (base + own + attend + backward + again)


def columns_of(config, lengths) -> dict[str, int]:
    """Columns of each view [P+T] and of the completion, as `make_batch` pads them."""
    pad_to, method = config.train.pad_to, config.method
    prompt, completion = lengths.prompt, lengths.completion
    if method.trains_on == "solution" and method.tokens == "all":
        prompt, completion = 1, lengths.prompt - 1 + completion
    tail = pad_length(completion, pad_to)
    teacher = pad_length(lengths.teacher_prompt, pad_to) + tail
    views = dict.fromkeys(method.teacher_views, teacher)
    return {"completion": tail, "student": pad_length(prompt, pad_to) + tail, **views}


def readings(config, cfg: ModelConfig, models, lengths, views: Sequence[str]) -> list[Reading]:
    """The passes without gradient over some views. models: of the run, whose trees know their shapes."""
    columns, teacher = columns_of(config, lengths), config.teacher
    found = []
    for view in views:
        if view == REFERENCE:
            other = cfg if models.reference is None else models.reference.cfg
            found.append(Reading(view, columns["student"], other, False))
            continue
        times = config.context.negatives if view == "negative" and config.method.negatives == "all" else 1
        follows = teacher.kind in ("live", "ema", "snapshot")
        if teacher.kind == "external":
            readers = [Reading(view, columns[view], model.cfg, False) for model in models.external.values()]
        elif teacher.kind == "trust_region":
            # The base and the student, whose heads stand side by side.
            readers = [Reading(view, columns[view], cfg, with_adapter) for with_adapter in (False, True)]
        else:
            readers = [Reading(view, columns[view], cfg, follows)]
        found += readers * times
    return found


def step_flops(config, cfg: ModelConfig, models, lengths, pool_columns: int, context: int = 1) -> Work:
    """FLOPs of one training step with every row at full length.

    pool_columns: cache columns of a slot, all of which a decode step reads. 0 without sampling here.
    """
    lora, method, columns = config.lora, config.method, columns_of(config, lengths)
    tokens, head = columns["completion"], 2 * cfg.vocab_size * cfg.hidden_size

    def read(passes: Sequence[Reading]) -> float:
        return sum(
            forward(p.cfg, p.columns, lora if p.adapter else None, context)
            + tokens * 2 * p.cfg.vocab_size * p.cfg.hidden_size
            for p in passes
        )

    student_again = forward(cfg, columns["student"], lora, context) + tokens * head
    scored = read(readings(config, cfg, models, lengths, method.score_views))
    scored += student_again * any(name.startswith("student.") for name in method.all_scores)
    value = trained(cfg, columns["student"], lora, context) + tokens * head * (2 if lora is not None else 3)
    value += read(readings(config, cfg, models, lengths, method.views))
    updates = config.rows_per_step * config.train.passes
    score = config.rows_per_step * student_again if config.updates_per_step > 1 else 0
    if not pool_columns:
        return Work(updates * (scored + value), score, 0, 0)
    per_token = cfg.num_layers * (2 * (projections(cfg) + adapter_products(cfg, lora)) + attention(cfg, pool_columns))
    decode = config.rows_per_step * lengths.completion * (per_token + head)
    plain = cfg.num_layers * lengths.prompt * (2 * (projections(cfg) + adapter_products(cfg, lora)))
    prefill = config.train.batch_size * (plain + cfg.num_layers * lengths.prompt * attention(cfg, lengths.prompt))
    return Work(updates * (scored + value), score, decode, prefill)
