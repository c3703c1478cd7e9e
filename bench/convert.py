"""How fast weights are converted, and how much memory it takes: python -m bench.convert --gigabytes 2

Writes a random Qwen3 checkpoint of about that size in bfloat16, converts it to orbax and back in processes of their
own, checks that the bytes came back, and prints seconds, throughput and peak memory. Memory is what the process holds
beyond the files it maps (RssAnon), sampled every 2 ms, less what it held before reading.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

LAYERS, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 24, 16, 8, 128, 151936


def make_checkpoint(folder: Path, gigabytes: float) -> None:
    """A Qwen3 directory of random bfloat16 weights, written tensor by tensor."""
    from jopsd.models.decoder import ModelConfig, parameter_count
    from jopsd.models.families import FAMILIES
    from jopsd.models.hf import abstract_decoder, hf_config, leaves_of
    from jopsd.models.safetensors_files import make_slots, split_shards, write_index, write_safetensors

    def config(width: int) -> ModelConfig:
        return ModelConfig(
            VOCAB, width, LAYERS, HEADS, KV_HEADS, HEAD_DIM, 3 * width, tie_embeddings=True, param_dtype="bfloat16"
        )

    cfg = next(c for c in map(config, range(128, 16384, 128)) if 2 * parameter_count(c) >= gigabytes * 1e9)
    random = np.random.default_rng(0)
    draw = lambda slot: (0.02 * random.standard_normal(slot.shape, np.float32)).astype("bfloat16")  # noqa: E731
    folder.mkdir(parents=True)
    slots = make_slots(leaves_of(abstract_decoder(cfg)), FAMILIES["Qwen3ForCausalLM"].tensors)
    shards = split_shards(slots, 2, 10**9)
    write_safetensors(folder, shards, "bfloat16", ((slot, draw(slot)) for slot in slots))
    write_index(folder, shards, 2)
    (folder / "config.json").write_text(json.dumps(hf_config(cfg)))


def anonymous() -> int:
    """Bytes this process holds that are not pages of a file."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")))


def measure(command: list[str]) -> dict[str, float]:
    """Runs a `python -m convert` command in this process: seconds and peak bytes."""
    import jax

    from convert.__main__ import main

    jax.block_until_ready(jax.numpy.zeros(8) + 1)
    before, peak, done = anonymous(), [0], threading.Event()

    def watch():
        while not done.is_set():
            peak[0] = max(peak[0], anonymous())
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    start = time.monotonic()
    code = main(command)
    seconds = time.monotonic() - start
    done.set()
    thread.join()
    if code:
        raise SystemExit(code)
    return {"seconds": seconds, "peak": peak[0] - before}


def in_process_of_its_own(command: list[str]) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "bench.convert", "--measure", *command], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def same_bytes(one: Path, other: Path) -> bool:
    """Whether two directories hold the same tensors."""
    from safetensors import safe_open

    def tensors(folder: Path):
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, "np") as handle:
                for name in handle.keys():
                    yield name, handle.get_tensor(name).tobytes()

    return dict(tensors(one)) == dict(tensors(other))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        here = Path(temporary)
        make_checkpoint(here / "model", args.gigabytes)
        sizes = [np.prod(shape) * 2 for shape in shapes(here / "model")]
        model, largest = sum(sizes), max(sizes)
        print(f"model {model / 1e9:.2f} GB in {len(sizes)} tensors, largest {largest / 1e9:.2f} GB")
        print("| command | seconds | GB/s | peak memory, GB | in models | beyond the model, in largest tensors |")
        print("|---|---:|---:|---:|---:|---:|")
        commands = {
            "to-flax": ["to-flax", "--model", str(here / "model"), "--output", str(here / "flax")],
            "to-hf": ["to-hf", "--from", str(here / "flax"), "--output", str(here / "back")],
        }
        for name, command in commands.items():
            found = in_process_of_its_own(command)
            seconds, peak = found["seconds"], found["peak"]
            print(
                f"| `{name}` | {seconds:.1f} | {model / seconds / 1e9:.2f} | {peak / 1e9:.2f} | {peak / model:.2f} "
                f"| {(peak - model) / largest:.2f} |"
            )
        print(f"bytes came back: {same_bytes(here / 'model', here / 'back')}")


def shapes(folder: Path) -> list[tuple[int, ...]]:
    from jopsd.models.safetensors_files import stored_tensors

    return [stored.shape for stored in stored_tensors(folder).values()]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(sys.argv[2:])))
    else:
        main()
