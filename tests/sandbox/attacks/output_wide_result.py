# family: output
# tries: a result of fifty lists that holds 2^50 entries when it is written out
# mode: module
# calls: [["f", [], []]]
# slow: yes
# seconds: 0.3
# status: timeout memory
def f():
    x = []
    for _ in range(50):
        x = [x, x]
    return x
