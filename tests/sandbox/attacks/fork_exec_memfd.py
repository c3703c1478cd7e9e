# family: fork
# tries: a program of its own from memory in its own place
# guard: seccomp
import os

descriptor = os.memfd_create("program")
os.write(descriptor, b"#!/bin/sh\necho won\n")
os.execv(f"/proc/self/fd/{descriptor}", ["program"])
