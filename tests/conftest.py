"""Fixtures shared by all tests: eight virtual CPU devices, and the optional folder of real rows."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

# Read by XLA when the CPU backend starts, so it must be set before anything imports jax. Tests compile much and compute
# little: without LLVM's expensive passes they take less than half the time.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=8"
    " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Many tests compile the same programs, in this process, in the other one and in those that they start. And none of them
# writes into the user's own cache. A folder named here is kept, and makes the next session faster.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled = tempfile.mkdtemp(prefix="jopsd-tests-")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    atexit.register(shutil.rmtree, _compiled, ignore_errors=True)

import pytest

from jopsd.rewards.sandbox import Sandbox, SandboxError

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def sandbox():
    """A sandbox for programs, where the host offers one."""
    try:
        made = Sandbox()
    except SandboxError as error:
        pytest.skip(f"this host cannot run programs: {error}")
    with made:
        yield made


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real rows and golden vectors beside a developer's checkout; a user has none."""
    folder = REPO.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("the folder ../shared with real rows is not here")
    return folder
