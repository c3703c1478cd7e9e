# family: network
# tries: to look up names
# seconds: 2
import socket

for name in ("example.org", "one.one.one.one"):
    try:
        print("won" if socket.getaddrinfo(name, 80) else "")
        break
    except OSError:
        pass
