# family: crash
# tries: a program that says it is written in a code that hides what it is
# status: error ok
# prints: 42
# source: "# -*- coding: utf-7 -*-\n#+AAo-print(42)\n"
