"""What a verifier says about one completion."""

from dataclasses import dataclass

FEEDBACK_CHARS = 200  # of a wrong answer that feedback repeats


@dataclass(frozen=True)
class Score:
    """One completion's verdict.

    ``reward`` is what the method trains on; ``correct`` and ``formatted`` are what the metrics count; ``prediction`` is
    the extracted answer (None: nothing to extract); ``feedback`` is text for methods whose teacher reads it.
    """

    reward: float
    correct: bool
    formatted: bool
    prediction: str | None
    feedback: str | None = None
