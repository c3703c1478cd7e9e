# family: contest
# tries: the header of many contest programs, star imports among it
# stdin: 2\n3 4\n
# prints: 7 25 3.0
# core: yes
# ruff: noqa
import os, sys, io, math, re, random, copy, time, string, heapq, bisect, itertools, functools, operator, collections, decimal, fractions
from math import *
from collections import *
from itertools import *
from functools import *
from heapq import *
from bisect import *
from operator import *
from typing import *

input = sys.stdin.readline
mod = 10**9 + 7
n = int(input())
a, b = map(int, input().split())
print(a + b, pow(a, n) + pow(b, n), sqrt(9))
