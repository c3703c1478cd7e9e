# family: crash
# tries: to catch its own recursion and division errors
# prints: RecursionError ZeroDivisionError
def forever():
    return forever()


names = []
for action in (forever, lambda: 1 // 0):
    try:
        action()
    except Exception as error:
        names.append(type(error).__name__)
print(*names)
