# family: contest
# imports: numpy
# tries: numpy
# prints: 6 [[2. 0.] [0. 2.]] True
# core: yes
import numpy as np

rng = np.random.default_rng(0)
print(np.arange(4).sum(), str(np.linalg.inv(np.eye(2) / 2)).replace("\n", ""), rng.random(3).shape == (3,))
