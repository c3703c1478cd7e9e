# family: fork
# tries: a pool of threads
# prints: 4950
# core: yes
from concurrent.futures import ThreadPoolExecutor

with ThreadPoolExecutor(8) as pool:
    print(sum(pool.map(int, range(100))))
