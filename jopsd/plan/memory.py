"""What lives on a device at the same time, while it trains and while it samples."""

from typing import NamedTuple

from jopsd.plan.compile import Program
from jopsd.plan.shapes import Shapes, bytes_per_device


class Memory(NamedTuple):
    """Bytes of one device.

    Attributes:
      parts: by name, what is held; and what programs need beside it.
      train, sample: the most that is held at once, by the sum of arguments and temporaries. 0 where nothing is sampled.
      train_peak: the same by XLA's own account of what is alive, which leaves no room for gaps; 0 where it keeps none.
      refused: the compiler's words on a program that it could not place at all.
    """

    parts: dict[str, int]
    train: int
    sample: int
    train_peak: int
    refused: str

    def fits(self, limit: float) -> bool:
        return not self.refused and max(self.train, self.sample) <= limit


def memory_of(config, shapes: Shapes, programs: dict[str, Program]) -> Memory:
    """The account of a plan. programs: compiled, or estimated."""
    state, models = shapes.weights.state, shapes.weights.models
    body = bytes_per_device(models.base) if config.lora is not None else 0
    held = {
        "parameters": bytes_per_device(state.trainable) + body,
        "teacher and reference": bytes_per_device((models, state.teacher)) - body,
        "optimiser": bytes_per_device(state.optimizer),
        "batch": bytes_per_device(shapes.batch),
        "sampler's copy of the weights": shapes.copies,
        "cache of the sampler": bytes_per_device(shapes.pool),
    }
    beside = {f"{name}: temporaries": program.beside_arguments for name, program in programs.items()}
    # A TPU lays arrays out in tiles, so that XLA's arguments are a little more than the arrays.
    resident = programs["update"].arguments or sum(list(held.values())[:4])
    # The loop gives its slots back after a step; JetStream's threads keep theirs.
    kept = shapes.copies + (held["cache of the sampler"] if config.sampling.backend == "jetstream" else 0)
    trained = [programs[name] for name in ("update", "score") if name in programs]
    # Scoring runs with all of the state in memory, though it reads only the weights.
    train = kept + resident + max(program.beside_arguments for program in trained)
    peak = programs["update"].peak and programs["update"].peak + kept
    sample = 0
    if shapes.pool is not None:
        runs = max(programs["decode"].beside_arguments, programs["prefill"].beside_arguments)
        sample = resident - held["batch"] + shapes.copies + held["cache of the sampler"] + runs
    refused = "; ".join(f"{name}: {program.refused}" for name, program in programs.items() if program.refused)
    return Memory(held | beside, train, sample, peak, refused)
