"""Weights between Hugging Face directories, orbax directories and runs: `python -m convert --help`."""
