# family: exit
# tries: exit() and quit() after its answer, as interactive users do
# prints: 7
print(7)
try:
    quit()
except SystemExit:
    exit(0)
