# family: forged
# tries: to hand its descriptors to whoever reads its channel
# mode: module
# calls: [["f", [], 42]]
import socket


def f():
    for number in range(3, 32):
        try:
            with socket.socket(fileno=number) as channel:
                socket.send_fds(channel, [b"\0\0\0\x02{}"], [0] * 50)
        except OSError:
            pass
