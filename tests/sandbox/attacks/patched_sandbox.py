# family: patching
# tries: to replace the sandbox's own functions in its process
# mode: judge
# names: f
# slow: yes
# seconds: 0.3
# tests: assert f() == 42
import sys

for name, module in list(sys.modules.items()):
    if "sandbox" in name or name in ("json", "unittest"):
        for entry, value in list(vars(module).items()):
            if callable(value) and not entry.startswith("__") and entry not in ("read_message", "_exactly"):
                try:
                    setattr(module, entry, lambda *_, **__: True)
                except AttributeError:
                    pass


def f():
    return True
