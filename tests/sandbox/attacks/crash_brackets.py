# family: crash
# tries: 200,000 brackets
# status: error crash memory
# source: "(" * 200_000 + ")" * 200_000 + "\nprint('won')"
