# family: patching
# tries: fast output and input in the place of the usual
# stdin: 3\n1 2 3\n
# prints: 6
import io
import os
import sys


class FastIO(io.IOBase):
    def __init__(self, file):
        self._descriptor = file.fileno()
        self.buffer = io.BytesIO()
        self.writable = lambda: "w" in file.mode

    def readline(self):
        if not self.buffer.getbuffer().nbytes:
            self.buffer = io.BytesIO(os.read(self._descriptor, os.fstat(self._descriptor).st_size))
        return self.buffer.readline()

    def write(self, data):
        return self.buffer.write(data)

    def flush(self):
        os.write(self._descriptor, self.buffer.getvalue())
        self.buffer = io.BytesIO()


class Wrapper(io.IOBase):
    def __init__(self, file):
        self.buffer = FastIO(file)

    def readline(self):
        return self.buffer.readline().decode("ascii")

    def write(self, text):
        return self.buffer.write(text.encode("ascii"))

    def flush(self):
        self.buffer.flush()


sys.stdin, sys.stdout = Wrapper(sys.stdin), Wrapper(sys.stdout)
input = lambda: sys.stdin.readline().rstrip("\r\n")  # noqa: E731
input()
print(sum(map(int, input().split())))
