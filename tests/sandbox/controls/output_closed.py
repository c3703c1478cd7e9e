# family: output
# tries: to close its output when it is done
# prints: 7
import sys

print(7)
sys.stdout.close()
