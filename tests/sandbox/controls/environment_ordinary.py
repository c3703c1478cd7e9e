# family: environment
# tries: to read its environment and arguments
# prints: None True 1
import os
import sys

print(os.environ.get("ONLINE_JUDGE"), isinstance(os.environ.get("HOME"), str), len(sys.argv))
