"""A mark for tests that need a host on which programs can be kept in a sandbox."""

import pytest

from jopsd.rewards.sandbox import Sandbox, SandboxError


def _why_not() -> str | None:
    try:
        Sandbox(4000).close()
    except SandboxError as error:
        return str(error)
    return None


_reason = _why_not()
needs_sandbox = pytest.mark.skipif(_reason is not None, reason=str(_reason))
