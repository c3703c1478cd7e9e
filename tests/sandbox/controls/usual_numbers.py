# family: contest
# tries: exact numbers
# prints: 0.3333333333333333333333333333 7/12 1000000007 2.0
import cmath
from decimal import Decimal
from fractions import Fraction

print(Decimal(1) / 3, Fraction(1, 3) + Fraction(1, 4), pow(2, -1, 2_000_000_013), cmath.sqrt(4).real)
