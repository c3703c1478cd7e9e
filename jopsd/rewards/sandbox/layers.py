"""Which layers the sandbox is made of, what each is for, and when they are enough."""

LAYERS: dict[str, str] = {
    "namespaces": "its own files, network, processes and host name (Linux namespaces)",
    "landlock": "the kernel refuses files outside a short list",
    "seccomp": "the kernel refuses system calls outside a list: no fork, exec, socket or signal",
    "user": "its own user id, without any right of root",
    "cgroups": "limits on memory and processes in sum",
    "rlimits": "limits on time, memory, files and threads of each process",
}
# Each line must be held by at least one layer before a model's program may run.
REQUIRED: dict[str, tuple[str, ...]] = {
    "files of the host": ("namespaces", "landlock"),
    "the network": ("namespaces", "seccomp"),
    "other processes": ("namespaces", "seccomp"),
    "an endless number of processes": ("seccomp", "cgroups", "user"),
    "time and memory": ("rlimits",),
}


def unguarded(active: frozenset[str]) -> list[str]:
    """What no active layer keeps a program away from; empty where programs may run."""
    return [what for what, layers in REQUIRED.items() if not active.intersection(layers)]
