# family: files
# tries: its input by its number, by its name and as a mapping
# stdin: 5 6 7\n
# prints: 5 6 7 True 6
# needs: namespaces
import mmap
import os

with open("/dev/stdin") as file:
    text = file.read().strip()
print(text, os.fstat(0).st_size == 6, mmap.mmap(0, 0, access=mmap.ACCESS_READ)[2:3].decode())
