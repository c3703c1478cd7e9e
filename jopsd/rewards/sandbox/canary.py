"""Three small programs that try to get out. They are run before the first program of a model is."""

import os
import socket
import tempfile

from jopsd.rewards.sandbox.box import Sandbox
from jopsd.rewards.sandbox.programs import Limits, SandboxError

SECRET = "a file of the host"
_LIMITS = Limits(seconds=5)
_PROGRAMS = {
    "read a file of this host": "print(open({path!r}).read())",
    "connect to this host": "import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)\nprint('connected')",
    "signal a process of this host": "import os\nos.kill({pid}, 0)\nprint('signalled')",
}


def check(sandbox: Sandbox) -> None:
    """Raises SandboxError if a program can read a file, connect or send a signal outside, or cannot run at all."""
    outcome = sandbox.run("print(6 * 7)", "", _LIMITS)
    if outcome.value != "42\n":
        raise SandboxError(f"the sandbox runs no programs: {outcome.status} {outcome.message}")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file, socket.create_server(("127.0.0.1", 0)) as listener:
        file.write(SECRET)
        file.flush()
        os.chmod(file.name, 0o644)
        facts = {"path": file.name, "port": listener.getsockname()[1], "pid": os.getpid()}
        for what, program in _PROGRAMS.items():
            outcome = sandbox.run(program.format(**facts), "", _LIMITS)
            if outcome.status == "ok":
                raise SandboxError(f"a program in the sandbox could {what}; nothing a model wrote is run")
