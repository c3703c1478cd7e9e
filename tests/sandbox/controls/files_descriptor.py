# family: files
# tries: open(0), as the first line of many programs
# stdin: 3\n1 2 3\n
# prints: 6
# core: yes
n, *numbers = map(int, open(0).read().split())
print(sum(numbers))
