# family: crash
# tries: fifty brackets and fifty signs
# source: "print(" + "(" * 50 + "-" * 50 + "7" + ")" * 50 + ")"
# prints: 7
