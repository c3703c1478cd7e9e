"""Rows to Problems, Problems to batches, messages to token ids."""
