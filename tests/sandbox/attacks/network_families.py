# family: network
# tries: sockets of every other kind
# guard: seccomp
import socket

for family in range(1, 46):
    for kind in (1, 2, 3, 5):
        try:
            socket.socket(family, kind).close()
            print("won")
            raise SystemExit
        except OSError:
            pass
