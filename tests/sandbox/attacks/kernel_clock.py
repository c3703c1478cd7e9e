# family: kernel
# tries: to set the clock and the name of this machine
import ctypes
import socket
import time

try:
    time.clock_settime(time.CLOCK_REALTIME, time.time())
    print("won")
except OSError:
    pass
try:
    socket.sethostname("jopsd-attack")
    print("won")
except OSError:
    pass
if ctypes.CDLL(None).reboot(0) == 0:
    print("won")
