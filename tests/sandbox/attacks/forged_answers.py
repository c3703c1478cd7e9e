# family: forged
# tries: answers with a value that is none, or words that are none; then silence
# mode: module
# calls_from: [["f", [i], 0] for i in (0, 5, 1, 5, 2, 5, 3, 5, 4)]
# slow: yes
# seconds: 0.3
# status: unreadable error timeout
import os
import struct

TEXTS = (
    b'{"status": "ok"}',
    b'{"status": "ok", "value": 7}',
    b'{"status": "ok", "value": {"i": NaN}}',
    b'{"status": "error", "message": ' + b'{"a":' * 900 + b"0" + b"}" * 900 + b"}",
    b'{"status": "error", "message": [' + b"{}," * 5_000_000 + b"0]}",
)


def f(which):
    data = struct.pack("!I", len(TEXTS[which])) + TEXTS[which]
    while data:
        data = data[os.write(channel(), data) :]
    while True:
        pass


def channel():
    for number in range(3, 256):
        try:
            os.fstat(number)
            return number
        except OSError:
            pass
