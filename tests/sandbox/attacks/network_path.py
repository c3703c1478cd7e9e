# family: network
# tries: a UNIX socket that stands in the file system
# alone: wins
import socket

socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"here", "@CANARY@/socket")
print("won")
