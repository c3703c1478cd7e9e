# family: cpu
# tries: a loop without end where a function is to be called
# mode: module
# seconds: 0.3
# status: timeout
def f():
    while True:
        pass
