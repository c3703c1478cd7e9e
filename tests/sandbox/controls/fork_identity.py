# family: fork
# tries: to ask who it is
# prints: True True
import os

print(os.getpid() > 0 and os.getppid() >= 0, os.getuid() == os.geteuid())
