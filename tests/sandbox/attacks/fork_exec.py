# family: fork
# tries: a shell in its own place
import os

os.execv("/bin/sh", ["sh", "-c", "echo won"])
