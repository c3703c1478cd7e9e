# family: memory
# imports: numpy
# tries: an array of numpy's after an earlier one is gone
# slow: yes
# prints: 20
# memory_mb: 256
import numpy

for _ in range(20):
    block = numpy.ones(100 << 17)
    del block
print(20)
