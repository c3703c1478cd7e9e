# family: crash
# tries: to crash the interpreter
# status: crash
# core: yes
import ctypes

print("won", flush=True)
ctypes.string_at(1)
