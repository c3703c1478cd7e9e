# family: forged
# tries: sets of integers whose hashes are all the same
# mode: module
# calls: [["f", [], 0]]
# seconds: 6
# status: unreadable
import json
import os
import struct

PRIME = (1 << 61) - 1


def f():
    keys = ",".join('["i","%x"]' % (k * PRIME) for k in range(1, 4999))
    sets = ",".join(['["s",[' + keys + "]]"] * 50)
    data = json.dumps({"status": "ok", "value": '["l",[' + sets + "]]"}).encode()
    data = struct.pack("!I", len(data)) + data
    for number in range(3, 256):
        try:
            while data:
                data = data[os.write(number, data) :]
        except OSError:
            pass
    while True:
        pass
