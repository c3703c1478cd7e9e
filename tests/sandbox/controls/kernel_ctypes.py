# family: kernel
# tries: the C library
# prints: 3 b'abc'
import ctypes

libc = ctypes.CDLL(None)
print(libc.strlen(b"abc"), ctypes.create_string_buffer(b"abc").value)
