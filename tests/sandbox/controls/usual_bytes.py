# family: contest
# tries: a megabyte of input as bytes
# stdin_from: "1 " * 500_000 + "\n"
# prints: 500000 1000001
import sys

data = sys.stdin.buffer.read()
print(sum(map(int, data.split())), len(data))
