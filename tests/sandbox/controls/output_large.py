# family: output
# tries: a megabyte of output
# prints_from: "x" * 1_000_000
print("x" * 1_000_000)
