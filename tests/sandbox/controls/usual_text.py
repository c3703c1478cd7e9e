# family: contest
# tries: texts of the whole of Unicode
# stdin: naïve Ελλάδα 日本語 😀\n
# prints: 😀 日本語 Ελλάδα naïve 18
text = input()
print(*reversed(text.split()), len(text))
