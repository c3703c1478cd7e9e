# family: cpu
# tries: a regular expression that backtracks without end
# slow: yes
# seconds: 0.3
# status: timeout
import re

re.match(r"(a+)+$", "a" * 60 + "b")
print("won")
