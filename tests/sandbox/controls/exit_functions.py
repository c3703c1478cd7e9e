# family: exit
# tries: an answer by a function that runs at the end
# prints: 7 8
import atexit

atexit.register(print, 8)
print(7, end=" ")
