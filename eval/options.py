"""What `python -m eval` was asked for, checked, and filled in from a preset, a run's own evaluation, or defaults."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from eval import presets
from eval.presets import Preset
from jopsd.checkpoint import parse_run
from jopsd.config import Config, load_run_config
from jopsd.schema import Reward

DEFAULTS = {"temperature": 1.0, "top_p": 0.95, "top_k": 0, "max_new_tokens": 1024}
IN_PROCESS, SERVERS = ("jetstream", "loop"), ("grpc", "openai")


@dataclass(frozen=True)
class Options:
    """The arguments of `python -m eval`; see its --help.

    One of `data`, `benchmarks` and `generations` says what is asked (generations may stand beside either of the
    others); one of `model`, `checkpoint` and `checkpoints` says who answers. None leaves a choice open: sampling
    parameters and thinking to the preset, else to the run's own evaluation, else to `DEFAULTS` and the chat template;
    `reward` (the verifier's name) to the benchmark, else to the run, else to math; `max_length` to the model.
    """

    output: Path
    data: str | None = None
    benchmarks: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    levels: tuple[str, ...] = ()
    generations: Path | None = None
    preset: str | None = None
    samples: int | None = None
    model: str | None = None
    checkpoint: str | None = None
    checkpoints: Path | None = None
    every: int = 1
    split: str = "test"
    subset: str | None = None
    limit: int | None = None
    data_seed: int = 0
    columns: Mapping[str, str] = field(default_factory=dict)
    template: str | None = None
    reward: str | None = None
    unsafe: bool = False
    thinking: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_new_tokens: int | None = None
    max_length: int | None = None
    seeds: tuple[int, ...] = ()
    slots: int = 32
    backend: str = "jetstream"
    server: str | None = None
    served_model: str | None = None

    @property
    def run_dir(self) -> Path | None:
        """The run whose checkpoints answer; None for a model as it is on disk."""
        if self.checkpoints is not None:
            return self.checkpoints
        return None if self.checkpoint is None else parse_run(self.checkpoint)[0]

    @property
    def run_config(self) -> Config:
        """The config of that run. Raises ConfigError where there is no such run."""
        return load_run_config(self.run_dir, "--checkpoint" if self.checkpoints is None else "--checkpoints")


def complete(options: Options) -> tuple[Options, Preset | None]:
    """The options without open choices (but `reward`, `thinking` and `max_length`), and the preset they name.

    A preset brings its benchmarks where nothing else says what is asked.

    Raises:
      ValueError: options that contradict each other, are out of range, or an unknown preset.
    """
    preset = None if options.preset is None else presets.find(options.preset)
    if preset is not None and options.data is None and options.generations is None and not options.benchmarks:
        own = {"languages": options.languages or preset.languages, "levels": options.levels or preset.levels}
        options = replace(options, benchmarks=preset.benchmarks, **own)
    _check(options)
    defaults = dict(DEFAULTS)
    if options.run_dir is not None and (own := options.run_config.eval) is not None:
        defaults |= {name: getattr(own, name) for name in DEFAULTS}
    if preset is not None:
        defaults |= {name: getattr(preset, name) for name in DEFAULTS}
        defaults |= {"samples": preset.samples, "thinking": preset.thinking}
    left_open = {name: value for name, value in defaults.items() if getattr(options, name) is None}
    seeds = options.seeds or ((0,) if preset is None or options.generations is not None else preset.seeds)
    options = replace(options, **left_open, seeds=seeds)
    if options.samples is None and options.generations is None:
        raise ValueError("give --samples N, or a --preset that says how many")
    for name in ("samples", "slots", "every", "max_length"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
    return options, preset


def reward_of(options: Options, benchmark_reward: str | None) -> str:
    """The verifier's name: as asked for, the benchmark's, the run's, or math."""
    if options.reward or benchmark_reward:
        return options.reward or benchmark_reward
    own = None if options.run_dir is None else options.run_config.reward
    return Reward().name if own is None else own.name


def _check(options: Options) -> None:
    if options.data is not None and options.benchmarks:
        raise ValueError("give --data or --benchmark, not both")
    if options.data is None and not options.benchmarks and options.generations is None:
        raise ValueError("give --benchmark NAME, --data SOURCE, or --generations FILE")
    if (options.languages or options.levels) and not options.benchmarks:
        raise ValueError("--language and --level choose parts of a --benchmark; use --split or --subset with --data")
    if options.checkpoint is not None and options.checkpoints is not None:
        raise ValueError("give --checkpoint or --checkpoints, not both")
    if options.backend not in (*IN_PROCESS, *SERVERS):
        raise ValueError(f"--backend {options.backend!r} is not one of {', '.join((*IN_PROCESS, *SERVERS))}")
    if (options.backend in SERVERS) != (options.server is not None):
        raise ValueError(f"--server ADDRESS and --backend {' or '.join(SERVERS)} go together")
    if options.server is not None and (options.checkpoint is not None or options.checkpoints is not None):
        raise ValueError(
            "a --server answers with the weights it serves: leave --checkpoint out, and give --model for the tokenizer"
        )
    if len(set(options.seeds)) != len(options.seeds):
        raise ValueError(f"--seed has one twice: {' '.join(map(str, options.seeds))}")
    if not all(0 <= seed < 2**32 for seed in (*options.seeds, options.data_seed)):
        raise ValueError("--seed and --data-seed must be in [0, 2**32)")
    if options.generations is not None and len(options.seeds) > 1:
        raise ValueError("--generations holds samples that were drawn already: give one --seed, to label them")
