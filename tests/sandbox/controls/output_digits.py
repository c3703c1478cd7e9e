# family: output
# tries: an integer of 10,000 digits, read and printed
# stdin_from: "9" * 10_000 + "\n"
# prints_from: "1" + "0" * 10_000
print(int(input()) + 1)
