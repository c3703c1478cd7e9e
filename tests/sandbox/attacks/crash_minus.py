# family: crash
# tries: 300,000 signs before a number
# status: error crash memory
# source: "x = " + "-" * 300_000 + "1\nraise SystemExit(1)"
