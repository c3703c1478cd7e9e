# family: network
# tries: a TCP connection by raw system calls
# alone: wins
import ctypes
import platform
import socket
import struct

libc = ctypes.CDLL(None)
make, connect = {"x86_64": (41, 42), "aarch64": (198, 203)}[platform.machine()]
descriptor = libc.syscall(make, 2, 1, 0)
address = struct.pack("=H", 2) + struct.pack("!H4s8x", int("@TCP@"), socket.inet_aton("127.0.0.1"))
print("won" if descriptor >= 0 and libc.syscall(connect, descriptor, address, 16) == 0 else "blocked")
