# family: other processes
# tries: to read the memory of another process by process_vm_readv
# alone: wins
import ctypes
import os
import platform

number = {"x86_64": 310, "aarch64": 270}[platform.machine()]
libc = ctypes.CDLL(None)
address = ctypes.addressof(ctypes.c_char.in_dll(ctypes.pythonapi, "_Py_NoneStruct"))
local = ctypes.create_string_buffer(8)
here = (ctypes.c_uint64 * 2)(ctypes.addressof(local), 8)
for victim in (int("@BYSTANDER@"), int("@PARENT@"), os.getppid()):
    places = []
    try:
        with open(f"/proc/{victim}/maps") as file:
            places = [int(line.split("-")[0], 16) for line in file]
    except OSError:
        pass
    for place in [address, *places]:
        there = (ctypes.c_uint64 * 2)(place, 8)
        if libc.syscall(number, victim, here, 1, there, 1, 0) == 8:
            print("won", flush=True)
            os._exit(0)
