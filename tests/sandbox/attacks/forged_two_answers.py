# family: forged
# tries: an answer before it is asked, so that the next call gets the last one's
# mode: module
# calls: [["f", [1], 1], ["f", [2], 2], ["f", [3], 3]]
import json
import os
import struct


def f(x):
    data = json.dumps({"status": "ok", "value": json.dumps(["i", "0"])}).encode()
    for number in range(3, 256):
        try:
            os.write(number, (struct.pack("!I", len(data)) + data) * 3)
        except OSError:
            pass
    return 0
