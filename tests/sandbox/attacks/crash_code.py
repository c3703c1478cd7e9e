# family: crash
# tries: byte code that no compiler made
# seconds: 1
# prints: 42
def f():
    return 1


f.__code__ = f.__code__.replace(co_code=bytes(range(1, 201)), co_stacksize=1, co_consts=())
f()
print("won")
