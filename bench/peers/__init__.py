"""Puts jopsd's sampler beside `generate` of transformers: `python -m bench.peers`."""
