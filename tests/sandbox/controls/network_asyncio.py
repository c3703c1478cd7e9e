# family: network
# tries: asyncio
# prints: [0, 1, 4]
# core: yes
import asyncio


async def square(x):
    await asyncio.sleep(0.01)
    return x * x


async def main():
    queue = asyncio.Queue()
    await queue.put(0)
    print(await asyncio.gather(*map(square, range(3))))


asyncio.run(main())
