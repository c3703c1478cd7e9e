"""What saved rollouts say of teacher and student: `python -m eval.analysis --help`.

An analysis is a module with `add_arguments(parser)` and `run(args) -> None`, and a line of `ANALYSES`.
"""

ANALYSES = {
    "diversity": "eval.analysis.diversity",
    "entropy": "eval.analysis.entropy",
    "position": "eval.analysis.position",
    "style": "eval.analysis.style",
    "teacher-signal": "eval.analysis.signal",
}
