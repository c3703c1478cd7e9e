# family: signals
# tries: every other system call that sends a signal
# alone: acts
import ctypes
import platform

libc = ctypes.CDLL(None)
kill, tkill, tgkill, queue, queue_thread = {"x86_64": (62, 200, 234, 129, 297), "aarch64": (129, 130, 131, 138, 240)}[
    platform.machine()
]
victim, info = int("@BYSTANDER@"), ctypes.create_string_buffer(b"\x09\0\0\0\0\0\0\0\xff\xff\xff\xff", 128)
libc.syscall(kill, victim, 9)
libc.syscall(tkill, victim, 9)
libc.syscall(tgkill, victim, victim, 9)
libc.syscall(queue, victim, 9, info)
libc.syscall(queue_thread, victim, victim, 9, info)
libc.syscall(424, libc.syscall(434, victim, 0), 9, 0, 0)
