"""From `async_reduce`: the import changes, and the rest of the program does not.

Run it by `python -m examples.migrating`. It prints what each fetch gave, and what the hooks counted:
`Stats(total=4, executed=2, reduced=2, errors=0)`. With the two imports that are commented out, and `async_reduce`
installed, it prints the same.
"""

import asyncio

# from async_reduce import AsyncReducer, async_reduceable
# from async_reduce.hooks import StatisticsOverallHooks
from aiohttp_reduce import AsyncReducer, async_reduceable
from aiohttp_reduce.hooks import StatisticsOverallHooks

statistics = StatisticsOverallHooks()
reducer = AsyncReducer(hooks=statistics)


@async_reduceable(reducer)
async def fetch(key: str) -> str:
    """Stands for whatever is slow."""
    print(f"fetching {key}")
    await asyncio.sleep(0.1)
    return f"value of {key}"


async def main() -> None:
    print(await asyncio.gather(fetch("a"), fetch("b"), fetch("a"), fetch("a")))
    print(statistics)


if __name__ == "__main__":
    asyncio.run(main())
