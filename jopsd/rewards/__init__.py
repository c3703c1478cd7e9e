"""Verifiers: from a completion and a gold answer to a score. Importing this package loads nothing heavy.

Worker processes import it, so neither jax nor sympy may be imported here.
"""
