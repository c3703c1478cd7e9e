# family: network
# tries: a pair of sockets between two threads
# prints: hello
# core: yes
import socket
import threading

a, b = socket.socketpair()
threading.Thread(target=lambda: a.sendall(b"hello")).start()
print(b.recv(5).decode())
