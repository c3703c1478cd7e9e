# family: contest
# tries: input in all ways, to its end and beyond
# stdin: 1\n2\n3 4\n5\n6 7 8\n
# prints: 1 2 [3, 4] 5 [6, 7, 8] end end
import sys

first = input()
second = sys.stdin.readline().strip()
third = list(map(int, input().split()))
fourth = next(sys.stdin).strip()
fifth = [int(x) for x in sys.stdin.read().split()]
rest = []
for read in (input, lambda: sys.stdin.readline() or "end"):
    try:
        rest.append(read())
    except EOFError:
        rest.append("end")
print(first, second, third, fourth, fifth, *rest)
