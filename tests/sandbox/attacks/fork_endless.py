# family: fork
# tries: a fork bomb without end
# seconds: 0.3
# held_by: seccomp cgroups user
import os

while True:
    try:
        os.fork()
    except OSError:
        pass
