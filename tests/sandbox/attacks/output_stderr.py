# family: output
# tries: to fill memory through its standard error
# status: output
import sys

while True:
    sys.stderr.write("x" * 100_000)
