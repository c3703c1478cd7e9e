# family: output
# tries: to fill memory through its standard output
# status: output
while True:
    print("won" * 10_000)
