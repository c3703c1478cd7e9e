"""Does a config fit that pod, and how long does a step take: `python -m jopsd.plan`, without the accelerator."""
