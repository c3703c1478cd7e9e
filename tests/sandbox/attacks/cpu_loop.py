# family: cpu
# tries: a loop without end
# seconds: 0.3
# status: timeout
# core: yes
while True:
    pass
