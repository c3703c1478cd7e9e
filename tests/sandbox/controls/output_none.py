# family: output
# tries: to put nothing in the place of its output when it is done
# prints: 7
import sys

print(7, flush=True)
sys.stdout = None
