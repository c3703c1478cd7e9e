# family: memory
# tries: one list of ten thousand million entries
# status: memory
x = [0] * 10**10
print("won")
