# family: network
# tries: a UDP packet to this machine
# alone: wins
# core: yes
import socket

socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"here", ("127.0.0.1", int("@UDP@")))
print("won")
