# family: network
# tries: a TCP connection to this machine
# alone: wins
# core: yes
import socket

with socket.create_connection(("127.0.0.1", int("@TCP@")), 1) as connection:
    connection.sendall(b"here")
print("won")
