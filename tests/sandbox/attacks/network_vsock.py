# family: network
# tries: a socket of a kind that network namespaces do not cover: to the host of a virtual machine
# alone: wins
# guard: seccomp
import socket

socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
print("won")
