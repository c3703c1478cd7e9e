# family: threads
# tries: threads that pass work on by a queue
# prints: 4950
import queue
import threading

work, results, lock = queue.Queue(), [], threading.Lock()


def worker():
    while (item := work.get()) is not None:
        with lock:
            results.append(item)


workers = [threading.Thread(target=worker) for _ in range(4)]
for thread in workers:
    thread.start()
for item in [*range(100), *[None] * 4]:
    work.put(item)
for thread in workers:
    thread.join()
print(sum(results))
