"""What saved rollouts say of teacher and student: `python -m eval.analysis --help`.

An analysis is a module with `add_arguments(parser)` and `run(args) -> None`, and a line of `ANALYSES`.
"""

ANALYSES = {
    "teacher-signal": "eval.analysis.signal",
}
