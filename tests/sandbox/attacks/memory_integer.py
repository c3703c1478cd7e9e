# family: memory
# tries: one integer of 100 Gbit
# status: memory
x = 1 << 10**11
print("won")
