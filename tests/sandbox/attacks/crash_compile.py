# family: crash
# tries: code that compiles to far more than was written, by folded constants and nested texts
# status: error crash memory timeout
# seconds: 1
# source:
#   "x = " + "+".join(["'a' * 4096"] * 1000) + "\ny = " + "(1,) * 256 + " * 3000 + "()\ndef f(" + ",".join(f"a{i}"
#   for i in range(60_000)) + "): pass\n" + "\n".join(" " * i + "if 1:" for i in range(99)) + "\n" + " " * 99 +
#   "pass\n" + "lambda:" * 5000 + "0\nraise SystemExit(1)"
