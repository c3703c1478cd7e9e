# family: crash
# tries: a program of two million bytes
# status: error
# source: "print('won')\n#" + "x" * 2_000_000
