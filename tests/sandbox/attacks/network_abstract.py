# family: network
# tries: abstract UNIX sockets of this machine
# alone: wins
# core: yes
import socket

name = "\0" + "@ABSTRACT@"
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    try:
        with socket.socket(socket.AF_UNIX, kind) as connection:
            connection.connect(name + ("-stream" if kind == socket.SOCK_STREAM else ""))
            connection.send(b"here")
        print("won")
        break
    except OSError:
        pass
