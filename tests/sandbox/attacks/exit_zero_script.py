# family: exit
# tries: to end a script with success and no answer
# prints: 42
import os

os._exit(0)
