# family: contest
# tries: its own name and file
# prints: __main__ True
print(__name__, isinstance(__file__, str))
