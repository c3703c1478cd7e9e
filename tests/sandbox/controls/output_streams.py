# family: output
# tries: bytes, texts and descriptors for the same output
# prints: a b c d
import os
import sys

sys.stdout.write("a ")
sys.stdout.flush()
sys.stdout.buffer.write(b"b ")
sys.stdout.buffer.flush()
os.write(1, b"c ")
print("d", file=sys.stdout)
print("not an answer", file=sys.stderr)
