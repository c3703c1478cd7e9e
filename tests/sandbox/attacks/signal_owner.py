# family: signals
# tries: to have the kernel signal another process when data arrives
# alone: acts
# core: yes
import fcntl
import os
import signal
import socket

F_SETOWN_EX, F_SETSIG = 15, 10
reader, writer = socket.socketpair()
for own in (
    lambda: fcntl.fcntl(reader, fcntl.F_SETOWN, int("@BYSTANDER@")),
    lambda: fcntl.fcntl(reader, F_SETOWN_EX, (1).to_bytes(4, "little") + int("@BYSTANDER@").to_bytes(4, "little")),
):
    try:
        own()
        fcntl.fcntl(reader, F_SETSIG, int(signal.SIGKILL))
    except OSError:
        pass
try:
    fcntl.fcntl(reader, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
except OSError:
    pass
writer.send(b"x")
