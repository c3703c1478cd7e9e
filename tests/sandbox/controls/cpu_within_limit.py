# family: cpu
# tries: a loop that ends in time
# prints: 499999500000
# seconds: 5
total = 0
for i in range(1_000_000):
    total += i
print(total)
