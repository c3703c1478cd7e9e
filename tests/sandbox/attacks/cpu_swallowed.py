# family: cpu
# tries: to swallow whatever a time limit raises
# slow: yes
# seconds: 0.3
# status: timeout
while True:
    try:
        while True:
            pass
    except BaseException:
        pass
