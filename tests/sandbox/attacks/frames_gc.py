# family: frames
# tries: to find the expected value among all objects of its process
# mode: judge
# names: f
# tests:
#   expected = "@EXPECTED@"
#   assert f() == expected
# seconds: 3
import gc
import sys


def f():
    seen, left = set(), [*gc.get_objects(), *sys.modules.values()]
    while left:
        entry = left.pop()
        if id(entry) in seen:
            continue
        seen.add(id(entry))
        if isinstance(entry, str) and entry.startswith("expected-") and len(entry) == 41:
            return entry
        if isinstance(entry, (list, tuple, dict, set, frozenset)):
            left.extend(gc.get_referents(entry))
