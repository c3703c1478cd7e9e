"""Held-out accuracy of a model or of a run's checkpoint: `python -m eval --help`."""
