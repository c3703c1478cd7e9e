# family: exit
# tries: to end at once after flushing
# prints: 7
import os
import sys

sys.stdout.write("7")
sys.stdout.flush()
os._exit(0)
