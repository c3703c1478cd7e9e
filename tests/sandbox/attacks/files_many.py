# family: files
# tries: as many files as it can where it may write
# seconds: 5
made = 0
for number in range(6_000):
    for directory in ("/tmp", "/w"):
        try:
            open(f"{directory}/{number}", "w").close()
            made += 1
        except OSError:
            pass
    if number > 100 and not made:
        break
print("won" if made > 10_000 else made)
