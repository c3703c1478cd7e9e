"""Seconds that this process spends compiling."""

from collections.abc import Callable

import jax


def compile_clock() -> Callable[[], float]:
    """Starts to count. Returns a function that says the sum so far."""
    seconds: list[float] = []

    def record(event: str, duration: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(record)
    return lambda: sum(seconds)
