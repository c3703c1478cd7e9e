# family: cpu
# tries: one call in C that no exception can interrupt
# seconds: 0.3
# status: timeout memory
x = 10**10**8
print("won")
