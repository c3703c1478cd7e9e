# family: forged
# tries: values that the sandbox's own writer would never make
# mode: module
# calls_from: [["f", [i], 0] for i in range(13)]
# status: unreadable ok
import json
import sys

TEXTS = (
    '["i"]',
    '["i", "zz"]',
    '["x", []]',
    '{"i": 1}',
    '["d", [[["l", []], 1]]]',
    '["s", [["l", []]]]',
    '["i", "' + "f" * 1_000_000 + '"]',
    '["f", "1e5"]',
    '["f", "0x1p99999"]',
    '["c", "0x0p0", "0x1p99999"]',
    '["b", "0"]',
    "[" * 100_000,
    '["l", ' * 100 + "[]" + "]" * 100,
)


def f(which):
    sys.modules["jopsd.rewards.sandbox.values"].encode = lambda value: value
    assert json
    return TEXTS[which]
