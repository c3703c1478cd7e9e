"""Weights between Hugging Face directories, orbax directories, runs and PEFT adapters: `python -m convert --help`."""
