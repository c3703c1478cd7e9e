# family: network
# tries: an abstract socket from one end of a pair of datagram sockets
# alone: wins
# core: yes
import socket

for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
    for send in (
        lambda end: end.sendto(b"here", "\0" + "@ABSTRACT@"),
        lambda end: end.sendmsg([b"here"], [], 0, "\0" + "@ABSTRACT@"),
    ):
        try:
            send(socket.socketpair(socket.AF_UNIX, kind)[0])
            print("won")
            raise SystemExit
        except OSError:
            pass
