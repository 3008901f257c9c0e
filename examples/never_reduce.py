"""What must not be shared: a GET that does something is marked, and runs for everybody who asks.

Try `python -m examples.never_reduce`, and from many terminals at once `curl http://127.0.0.1:8080/ticket` and
`curl http://127.0.0.1:8080/queue`. It prints each run of a handler: one for every ticket, one for all who look at the
queue together. Each `curl` prints a ticket of its own, and the same queue.
"""

import asyncio

from aiohttp import web

from aiohttp_reduce import never_reduce, reduce_middleware

TICKETS = web.AppKey("TICKETS", list[int])


async def write_to_disk() -> None:
    """Stands for whatever is slow."""
    await asyncio.sleep(2)


@never_reduce
async def ticket(request: web.Request) -> web.Response:
    tickets = request.app[TICKETS]
    number = len(tickets) + 1
    tickets.append(number)
    print(f"ticket {number}", flush=True)
    await write_to_disk()
    return web.Response(text=f"{number}\n")


async def queue(request: web.Request) -> web.Response:
    print("queue", flush=True)
    await write_to_disk()
    return web.Response(text=f"{len(request.app[TICKETS])} wait\n")


def make_app() -> web.Application:
    app = web.Application(middlewares=[reduce_middleware()])
    app[TICKETS] = []
    app.router.add_get("/ticket", ticket)
    app.router.add_get("/queue", queue)
    return app


if __name__ == "__main__":
    web.run_app(make_app(), host="127.0.0.1", port=8080)
