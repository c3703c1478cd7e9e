# family: files
# tries: to read a file if there is one, and its input if not
# stdin: 8\n
# prints: 8
import os
import sys

if os.path.exists("input.txt"):
    sys.stdin = open("input.txt")
try:
    sys.stdin = open("in.txt")
except OSError:
    pass
print(input())
