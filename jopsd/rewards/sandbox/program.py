"""What a confined process does: runs a whole program, answers calls of its functions, or runs tests on another's.

All of this happens beside the program's own code, so none of it is trusted: it only computes answers.
"""

import atexit
import builtins
import contextlib
import socket
import sys
import threading
import traceback
import types
from collections.abc import Callable
from typing import Any

from jopsd.rewards.sandbox import values, wire

FILE = "program.py"


def run(request: dict, channel: socket.socket | None) -> int:
    """The exit code of one request: mode script, module or judge."""
    return {"script": _script, "module": _module, "judge": _judge}[request["mode"]](request, channel)


def _script(request: dict, channel: socket.socket | None) -> int:
    main, code = _main(), 0
    try:
        exec(compile(request["source"], FILE, "exec"), main.__dict__)
    except SystemExit as stop:
        code = _exit_code(stop)
    except MemoryError:
        raise
    except BaseException as error:
        _show(error)
        code = 1
    _finish()
    return code


def _exit_code(stop: SystemExit) -> int:
    if stop.code is None or isinstance(stop.code, int):
        return (stop.code or 0) & 0xFF
    print(stop.code, file=sys.stderr)
    return 1


def _module(request: dict, channel: socket.socket) -> int:
    """Answers {"call", "args", "kwargs"} with {"status", "value" | "message"} until the channel closes."""
    main = _main()
    given = dict(main.__dict__)
    broken = _attempt(lambda: exec(compile(request["source"], FILE, "exec"), main.__dict__))
    while (message := _next(channel)) is not None:
        if broken is not None:
            answer = broken
        else:
            answer = _attempt(lambda: _call(main, given, message), as_value=True)
        wire.send(channel, answer)
    return 0


def _next(channel: socket.socket) -> dict | None:
    with contextlib.suppress(EOFError):
        return wire.receive(channel, most=wire.MAX_TRUSTED_BYTES)
    return None


def _call(main: types.ModuleType, given: dict, message: dict) -> Any:
    function = _find(main, given, message["call"])
    args, kwargs = (values.decode(message[key], values.MAX_TRUSTED_CHARS) for key in ("args", "kwargs"))
    return function(*args, **kwargs)


def _find(main: types.ModuleType, given: dict, name: str) -> Callable:
    """A function that the program defined: its own, or a method of its class Solution."""
    found = main.__dict__.get(name)
    if found is not None and found is not given.get(name):
        return found
    solution = main.__dict__.get("Solution")
    if solution is not None and hasattr(solution, name):
        return getattr(solution(), name)
    raise NameError(f"the program defines no function {name!r}")


def _judge(request: dict, channel: socket.socket) -> int:
    """Runs tests in which some names are functions of another box, reached through the channel."""
    main = _main()
    main.__dict__.update({name: _proxy(channel, name) for name in request["names"]})
    main.__dict__["candidate"] = main.__dict__[request["names"][0]]
    fault = _attempt(lambda: exec(compile(request["source"], "tests.py", "exec"), main.__dict__))
    wire.send(channel, {"done": fault})
    return 0


def _proxy(channel: socket.socket, name: str) -> Callable:
    def proxy(*args: Any, **kwargs: Any) -> Any:
        wire.send(channel, {"call": name, "args": values.encode(list(args)), "kwargs": values.encode(kwargs)})
        answer = wire.receive(channel)
        if answer["status"] == "ok":
            return values.decode(answer["value"])
        raise RuntimeError(f"{name}: {answer['status']}: {answer['message']}")

    proxy.__name__ = name
    return proxy


def _attempt(action: Callable[[], Any], as_value: bool = False) -> dict | None:
    """What came of it: a message for the channel; None where nothing went wrong and no value is wanted."""
    try:
        result = action()
        return {"status": "ok", "value": values.encode(result)} if as_value else None
    except values.NotPlainError as error:
        return {"status": "unreadable", "message": f"the program returned {error}"}
    except MemoryError:
        return {"status": "memory", "message": "out of memory"}
    except BaseException as error:
        return {"status": "error", "message": _in_words(error)}


def _in_words(error: BaseException) -> str:
    """The exception as Python prints it, without our own frames, shortened from the front."""
    try:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in (FILE, "tests.py")]
        lines = [f"  line {f.lineno}, in {f.name}\n" for f in frames[-5:]]
        return "".join([*lines, *traceback.format_exception_only(error)])[-values.MAX_TEXT :]
    except BaseException:
        return builtins.type(error).__name__


def _show(error: BaseException) -> None:
    sys.stderr.write(_in_words(error))


def _finish() -> None:
    """What an interpreter does at its end: waits for threads, runs exit functions, flushes."""
    threading._shutdown()
    atexit._run_exitfuncs()
    if sys.stdout is not None and not getattr(sys.stdout, "closed", False):
        sys.stdout.flush()


def _main() -> types.ModuleType:
    """A fresh `__main__` that already has what contest programs expect to be there."""
    main = types.ModuleType("__main__")
    main.__dict__.update(_prelude(), __builtins__=builtins, __file__=FILE)
    sys.modules["__main__"] = main
    return main


def _prelude() -> dict[str, Any]:
    """Names that LeetCode and most graders provide: modules, and what is usually taken from them."""
    names: dict[str, Any] = {}
    for name in ("typing", "collections", "heapq", "bisect", "functools", "itertools", "math", "string"):
        module = sys.modules.get(name)
        public = getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]
        names |= {n: getattr(module, n) for n in public if hasattr(module, n) and n not in ("pow",)}
    for name in _MODULES:
        if name in sys.modules:
            names[name] = sys.modules[name]
    names["inf"] = float("inf")
    return names


_MODULES = (
    "array bisect collections copy datetime decimal fractions functools heapq io itertools json math operator os queue "
    "random re statistics string sys threading time typing"
).split()
