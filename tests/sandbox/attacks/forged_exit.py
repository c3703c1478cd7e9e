# family: forged
# tries: to say on every descriptor that it ended well, then to go on
# seconds: 0.3
# status: timeout
import os
import struct

message = b'{"exit": 0}'
for number in [*range(3, 256), 0]:
    try:
        os.write(number, struct.pack("!I", len(message)) + message)
    except OSError:
        pass
print("won", flush=True)
while True:
    pass
