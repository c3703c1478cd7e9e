# family: forged
# tries: messages that are no JSON, no answer, or JSON that is dear to read
# mode: module
# calls_from: [["f", [i], 0] for i in range(6)]
# status: unreadable
import os
import struct

TEXTS = (
    b"\xff\xfe\x00",
    b"[" * 8_000_000,
    b"[]",
    b"null",
    b'{"status": ["ok"]}',
    b'{"status": "ok", "value": ' + b"9" * 8_000_000 + b"}",
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
