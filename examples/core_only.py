"""The core without a web server: coroutines that ask SQLite the same thing at once ask it once.

Run it by `python -m examples.core_only`; it prints how often the database was asked.
"""

import asyncio
import sqlite3
import threading
from collections.abc import Sequence

from aiohttp_reduce import async_reduce, async_reduceable

CALLS = 20


class Shop:
    """A database in memory that counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(":memory:", check_same_thread=False)
        self._connection.executescript(
            "CREATE TABLE stock (product TEXT PRIMARY KEY, pieces INTEGER NOT NULL);"
            "INSERT INTO stock VALUES ('apple', 3), ('pear', 5), ('plum', 8);"
        )

    def close(self) -> None:
        self._connection.close()

    # Calls are identical if the function and all arguments are equal: here the same shop and product.
    @async_reduceable()
    async def pieces(self, product: str) -> int:
        return await self._ask([product])

    # A list cannot be compared safely (it may change meanwhile), so whoever calls this one gives an `ident`.
    async def pieces_of_all(self, products: Sequence[str]) -> int:
        return await self._ask(products)

    async def _ask(self, products: Sequence[str]) -> int:
        # In a thread: SQLite would keep the event loop waiting.
        return await asyncio.to_thread(self._count, list(products))

    def _count(self, products: list[str]) -> int:
        places = ", ".join("?" * len(products))
        with self._lock:
            self.asked += 1
            row = self._connection.execute(f"SELECT sum(pieces) FROM stock WHERE product IN ({places})", products)
            return int(row.fetchone()[0])


async def main() -> None:
    shop = Shop()
    try:
        answers = await asyncio.gather(*[shop.pieces("apple") for _ in range(CALLS)])
        print(f"{CALLS} calls of pieces('apple'): each got {set(answers)}, the database was asked {shop.asked} time(s)")

        shop.asked = 0
        basket = ["apple", "pear"]
        answers = await asyncio.gather(
            *[async_reduce(shop.pieces_of_all(basket), ident=("basket", *basket)) for _ in range(CALLS)]
        )
        print(f"{CALLS} calls with ident=('basket', ...): each got {set(answers)}, asked {shop.asked} time(s)")

        shop.asked = 0
        answers = await asyncio.gather(*[shop.pieces(product) for product in ("apple", "pear", "plum")])
        print(f"3 calls for 3 products: {answers}, asked {shop.asked} time(s)")
    finally:
        shop.close()


if __name__ == "__main__":
    asyncio.run(main())
