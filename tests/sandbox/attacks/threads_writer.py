# family: threads
# tries: a thread that writes answers while the program is asked
# mode: module
# calls: [["f", [], 42], ["f", [], 43]]
# seconds: 1
import json
import os
import struct
import threading


def flood():
    data = json.dumps({"status": "ok", "value": json.dumps(["i", "29"])}).encode()
    while True:
        for number in range(3, 32):
            try:
                os.write(number, struct.pack("!I", len(data)) + data)
            except OSError:
                pass


def f():
    threading.Thread(target=flood, daemon=True).start()
    return 41
