"""What a sampling server counts, for Prometheus."""

from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Summary, start_http_server


class ServerMetrics(NamedTuple):
    """refusals are by gRPC status."""

    registry: CollectorRegistry
    requests: Counter
    samples: Counter
    tokens: Counter
    in_flight: Gauge
    policy_version: Gauge
    load_seconds: Summary
    refusals: Counter


def server_metrics() -> ServerMetrics:
    """A fresh set, all at zero."""
    registry = CollectorRegistry()
    name = "jopsd_serve_{}".format
    return ServerMetrics(
        registry,
        Counter(name("requests"), "Prompts taken.", registry=registry),
        Counter(name("samples"), "Completions sent.", registry=registry),
        Counter(name("tokens"), "Tokens of completions sent.", registry=registry),
        Gauge(name("in_flight"), "Samples taken and not sent yet.", registry=registry),
        Gauge(name("policy_version"), "Version of the weights that are served.", registry=registry),
        Summary(name("load_seconds"), "Time to take new weights: reading, and emptying the slots.", registry=registry),
        Counter(name("refusals"), "Calls refused.", ["status"], registry=registry),
    )


def publish_metrics(metrics: ServerMetrics, host: str, port: int) -> None:
    """Answers GET /metrics. Raises OSError where the port is taken."""
    try:
        start_http_server(port, host, metrics.registry)
    except (OSError, OverflowError) as error:
        raise OSError(f"--metrics-port {port}: {error}; give another port") from None
