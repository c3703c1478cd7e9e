"""What to change: keys and values for a plan that does not fit, or that waits for what it need not."""

from jopsd.losses.fused import default_chunk
from jopsd.plan.memory import Memory
from jopsd.plan.roofline import Seconds
from jopsd.plan.shapes import Shapes
from jopsd.plan.topology import GIB, Topology


def advice(config, shapes: Shapes, topology: Topology, memory: Memory, sampling: Seconds) -> list[str]:
    """Lines of `key=value: why`, the most promising first; none for a plan that needs none."""
    limit, found = topology.chip.hbm, []
    if memory.refused or memory.train > limit:
        found += _for_training(config, shapes, topology, memory)
    if (memory.refused and shapes.pool is not None) or memory.sample > limit:
        found += _for_sampling(config, shapes, memory)
    if found:
        found.append(f"more chips than {topology.chips}: fsdp divides parameters, optimiser and their copies")
    elif sampling.bound in ("ici", "dcn"):
        found.append(
            f"sampling.tensor={shapes.sampling_mesh.size}: decoding waits for weights that every token gathers over "
            "fsdp; split over tensor they stay where they are"
        )
    return list({line.partition(":")[0]: line for line in reversed(found)}.values())[::-1]


def _for_training(config, shapes: Shapes, topology: Topology, memory: Memory) -> list[str]:
    mesh, parts, limit, found = dict(shapes.mesh.shape), memory.parts, topology.chip.hbm, []
    held = sum(parts[name] for name in ("parameters", "teacher and reference", "optimiser"))
    working = memory.train - held
    if held > limit / 2:
        found += _fewer_weights(config, mesh, parts)
    if memory.refused or working > limit - min(held, limit):
        found += _smaller_pieces(config, shapes, mesh)
    pool, copies = parts["cache of the sampler"], parts["sampler's copy of the weights"]
    if config.sampling.backend == "jetstream" and not copies and pool > 0.05 * limit:
        found.append(f"sampling.backend=loop: frees the {_gib(pool)} of the sampler's cache while the update runs")
    if copies > 0.05 * limit:
        found.append(
            f"sampling.backend=loop sampling.tensor=mesh: samples from the weights where they are, without a copy of "
            f"{_gib(copies)}, and frees the {_gib(pool)} of its cache while the update runs"
        )
    if held <= limit / 2:
        found += _fewer_weights(config, mesh, parts)
    return found


def _fewer_weights(config, mesh: dict, parts: dict) -> list[str]:
    found = []
    if mesh["data"] > config.mesh.slices:
        fsdp = mesh["fsdp"] * mesh["data"] // config.mesh.slices
        found.append(
            f"mesh.data={config.mesh.slices} mesh.fsdp={fsdp}: parameters and optimiser divide by fsdp, not by data"
        )
    if config.lora is None:
        saved = parts["optimiser"] + parts["teacher and reference"]
        found.append(f"a section lora: no optimiser of all parameters and no second copy, {_gib(saved)} less")
        if config.model.param_dtype != "bfloat16":
            found.append(f"model.param_dtype=bfloat16: parameters of {_gib(parts['parameters'] // 2)} less")
    return found


def _smaller_pieces(config, shapes: Shapes, mesh: dict) -> list[str]:
    cfg, shards, found = shapes.weights.model_config, mesh["data"] * mesh["fsdp"], []
    rows, width = shapes.micro_rows // shards, shapes.batch.views["student"].tokens.shape[-1]
    if rows > 1:
        found.append(
            f"train.micro_batch_size={shapes.micro_rows // 2}: {_half(rows)} rows at a time on a device, not {rows}"
        )
    if config.model.remat != "full":
        found.append("model.remat=full: keeps the input of each layer and computes the rest again")
    if cfg.attention == "xla" and width > 1024:
        found.append("model.attention=auto on a chip with a kernel: plain attention forms every score of a row")
    if rows == 1 and mesh["fsdp"] % 2 == 0:
        micro = max(shapes.micro_rows // 2, 1)
        found.append(
            f"mesh.fsdp={mesh['fsdp'] // 2} mesh.context={mesh.get('context', 1) * 2} train.micro_batch_size={micro}: "
            "a device has a row to itself already, and context splits its columns"
        )
    chunk = config.train.token_chunk or default_chunk(shapes.mesh)
    logits = chunk * cfg.vocab_size * 4 // mesh["tensor"]
    if logits > GIB // 2:
        found.append(f"train.token_chunk={max(chunk // 4, 128)}: each of several chunks of logits is {_gib(logits)}")
    found.append(f"{_tensor(shapes.mesh)}: heads, feed-forward and vocabulary divide by tensor")
    return found


def _for_sampling(config, shapes: Shapes, memory: Memory) -> list[str]:
    pool, slots, found = memory.parts["cache of the sampler"], config.sampling.slots, []
    if slots > 1:
        found.append(f"sampling.slots={max(slots // 2, 1)}: the cache is {_gib(pool)} for {slots} slots")
    if config.sampling.weights == "exact" and shapes.copies:
        found.append("sampling.weights=int8: projections of half the bytes, on a host's own devices")
    if shapes.copies:
        found.append(
            "sampling.backend=loop sampling.tensor=mesh: all devices sample as one, from the trainer's arrays, and "
            "gather weights for every token"
        )
    if 2 * shapes.sampling_mesh.shape["tensor"] <= shapes.sampling_mesh.size:
        tensor = 2 * shapes.sampling_mesh.shape["tensor"]
        found.append(f"sampling.tensor={tensor}: key-value heads and weights divide by tensor")
    found.append("sampling.backend=remote with sampling.servers: sampling on other devices (python -m jopsd.serve)")
    return found


def _tensor(mesh) -> str:
    """The next size of tensor, at the cost of fsdp."""
    tensor = max(mesh.shape["tensor"] * 2, 4)
    return f"mesh.tensor={min(tensor, mesh.size) if mesh.size > 1 else tensor}"


def _half(rows: int) -> str:
    return f"{rows / 2:g}"


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"
