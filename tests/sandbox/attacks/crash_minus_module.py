# family: crash
# tries: 300,000 signs before a number, where functions are to be called
# mode: module
# status: error crash memory
# source: "x = " + "-" * 300_000 + "1\n"
