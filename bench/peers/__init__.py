"""Puts jopsd beside what its users have: transformers, TRL and Liger. `python -m bench.peers`."""
