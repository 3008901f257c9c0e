"""One flight for each user: `key=` names the user whom an outer middleware has found out.

Try `python -m examples.per_user_key`, and from many terminals at once
`curl -H "X-Api-Key: alice-phone" http://127.0.0.1:8080/orders`, some of them as alice-laptop and bob-laptop. Each
prints the orders of its own user. The same for `/_reduce/stats` prints the figures, with one run for each user: that
page is behind the authentication, too.
"""

import asyncio
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from aiohttp_reduce import reduce_middleware


class User:
    """As an object of a database mapper: a new one for each request, and without an equality of its own."""

    def __init__(self, name: str) -> None:
        self.name = name


# aiohttp 3.14 has typed keys for requests, and warns of plain strings; before, there were only strings.
USER: Any = web.RequestKey("USER", User) if hasattr(web, "RequestKey") else "user"
OWNER_OF_API_KEY = {"alice-laptop": "alice", "alice-phone": "alice", "bob-laptop": "bob"}


@web.middleware
async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
    name = OWNER_OF_API_KEY.get(request.headers.get("X-Api-Key", ""))
    if name is None:
        raise web.HTTPUnauthorized(text="401: send one of your keys as X-Api-Key")
    request[USER] = User(name)
    return await handler(request)


async def read_orders(name: str) -> list[str]:
    """Stands for a slow query."""
    await asyncio.sleep(2)
    return [f"an order of {name}"]


async def orders(request: web.Request) -> web.Response:
    user: User = request[USER]
    # `private` keeps shared caches away. Here it may be shared all the same: `key` says whose answer it is.
    return web.json_response(await read_orders(user.name), headers={"Cache-Control": "private"})


def user_name(request: web.Request) -> str:
    user: User = request[USER]
    return user.name


def make_app() -> web.Application:
    # The authentication stands outside: each request passes it, followers too.
    #
    # Without `headers` the API key would be in the identity like any unknown header: safe, but Alice's phone
    # and her laptop would not share. With it, no selected header says who asks any more, and a User that the
    # handler gets cannot be compared with another. So `key` must name the user, by something with equality;
    # without it, Alice's orders could be handed to Bob.
    app = web.Application(
        middlewares=[authenticate, reduce_middleware(headers=("Accept", "Accept-Language"), key=user_name)]
    )
    app.router.add_get("/orders", orders)
    return app


if __name__ == "__main__":
    web.run_app(make_app(), host="127.0.0.1", port=8080)
