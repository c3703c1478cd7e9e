# family: judge
# tries: to hang in each of a thousand calls, of which the tests make light
# mode: judge
# names: f
# tests:
#   for _ in range(1000):
#       try:
#           f()
#       except Exception:
#           pass
# slow: yes
# seconds: 0.3
# status: timeout
def f():
    while True:
        pass
