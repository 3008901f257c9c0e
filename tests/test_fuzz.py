"""Random herds in virtual time: whatever leaves, fails or stalls, each request ends once, and as it should.

`python -m tests.test_fuzz 0 20000` runs as many seeds as you like.
"""

import asyncio
import random
import sys
from typing import Any

import pytest
from aiohttp import web

from aiohttp_reduce import reduce_middleware
from tests.virtual import Door, VirtualLoop, run_virtually

# No handler takes longer, but for one that is stuck for a minute (seconds).
LONGEST = 10.0
STUCK = 60.0


def herd_of(seed: int) -> None:
    """One herd of 2 to 14 requests, all of its choices drawn from the seed. Raises AssertionError."""
    choose = random.Random(seed)
    max_age, max_wait = choose.choice([0.5, 2, 5, 1000]), choose.choice([1, 2, 3, 5, 1000])
    commit_takes = choose.choice([0, 0, 1])

    async def handler(request: web.Request) -> web.Response:
        fate = choose.random()
        try:
            await asyncio.sleep(choose.choice([0, 1, 2, 3, 4, 5, 7, LONGEST, STUCK]))
        except asyncio.CancelledError:
            if fate < 0.15:
                return web.Response(text="swallowed")
            if fate < 0.25:
                raise RuntimeError("while cancelled") from None
            if fate < 0.35:
                await asyncio.sleep(1)
            raise
        if fate < 0.2:
            raise RuntimeError("broken")
        headers = {"Cache-Control": "no-store"} if fate < 0.3 else {"Vary": "User-Agent"} if fate < 0.4 else {}
        return web.Response(text="ok", headers=headers)

    @web.middleware
    async def commits(request: web.Request, handler: Any) -> Any:
        response = await handler(request)
        if commit_takes:
            await asyncio.sleep(commit_takes)
        return response

    async def main(loop: VirtualLoop) -> None:
        door = Door(
            loop,
            reduce_middleware(max_age=max_age, max_wait=max_wait),
            handler,
            outer=[commits] if commit_takes or choose.random() < 0.5 else [],
            is_ordinary=choose.random() < 0.7,
        )

        async def visit(comes: float, cancelled_after: float | None, gone_after: float | None) -> None:
            await asyncio.sleep(comes)
            request = door.request(headers={"User-Agent": choose.choice("ab")})
            arrived = loop.time()
            task = asyncio.ensure_future(door.app._handle(request))
            cancelled = gone = False

            def cancel() -> None:
                nonlocal cancelled
                cancelled = cancelled or task.cancel()

            def leave() -> None:
                nonlocal gone
                gone = True
                request.transport.is_closing.return_value = True  # type: ignore[union-attr]

            if gone_after is not None:
                loop.call_later(gone_after, leave)
            if cancelled_after == 0:
                cancel()
            elif cancelled_after is not None:
                loop.call_later(cancelled_after, cancel)
            try:
                response = await task
            except asyncio.CancelledError:
                assert cancelled, "cancelled by nobody"
            except RuntimeError as error:
                if str(error) not in {"broken", "while cancelled"}:
                    raise
            except web.HTTPServiceUnavailable:
                assert gone, "refused although its client is there"
            else:
                assert response.text in {"ok", "swallowed"}
            assert loop.time() - arrived <= 3 * STUCK, "kept waiting"

        visits = [
            visit(
                choose.choice([0, 0, 0, 1, 2, 5]),
                choose.choice([None, None, None, 0, 0.0001, 1, 2, 3, 5]),
                choose.choice([None, None, None, 0, 1, 2]),
            )
            for _ in range(choose.randint(2, 14))
        ]
        await asyncio.gather(*visits)
        await asyncio.sleep(0.01)
        assert door.nothing_is_left()

    run_virtually(main)


@pytest.mark.parametrize("block", range(4))
def test_random_herds_end_as_they_should(block: int) -> None:
    for seed in range(block * 60, block * 60 + 60):
        try:
            herd_of(seed)
        except BaseException as error:
            error.add_note(f"seed {seed}: tests.test_fuzz.herd_of({seed})")
            raise


if __name__ == "__main__":
    for number in range(int(sys.argv[1]), int(sys.argv[2])):
        try:
            herd_of(number)
        except AssertionError as failure:
            sys.stderr.write(f"seed {number}: {failure}\n")
