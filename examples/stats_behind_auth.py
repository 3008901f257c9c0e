"""The figures on a route of your own: for whoever shows the token, from wherever they come.

Try `ADMIN_TOKEN=secret python -m examples.stats_behind_auth`, then
`curl -H "Authorization: Bearer secret" http://127.0.0.1:8080/admin/stats`, which prints the figures; with another
token, or none, it prints `401: Unauthorized`.
"""

import functools
import hmac
import os
import sys

from aiohttp import web
from aiohttp.typedefs import Handler

from aiohttp_reduce import reduce_middleware


def behind_token(token: str, handler: Handler) -> Handler:
    """The handler, for requests that bear the token; 401 for all others."""
    if not token:
        raise ValueError("token takes a secret, got an empty string, which anybody can send")
    expected = f"Bearer {token}".encode()

    # `wraps` keeps the mark by which the library never coalesces requests for its figures.
    @functools.wraps(handler)
    async def check_token(request: web.Request) -> web.StreamResponse:
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        # Takes equally long wherever the difference is, so that nobody can guess the token letter by letter.
        if not hmac.compare_digest(given, expected):
            raise web.HTTPUnauthorized(headers={"WWW-Authenticate": "Bearer"})
        return await handler(request)

    return check_token


async def hello(request: web.Request) -> web.Response:
    return web.Response(text="hello")


def make_app(token: str) -> web.Application:
    # `stats_path=None`: there is no other way to the figures than the route below.
    middleware = reduce_middleware(stats_path=None)
    app = web.Application(middlewares=[middleware])
    app.router.add_get("/hello", hello)
    app.router.add_get("/admin/stats", behind_token(token, middleware.stats_handler))
    return app


if __name__ == "__main__":
    if "ADMIN_TOKEN" not in os.environ:
        sys.exit("set ADMIN_TOKEN to the secret that opens /admin/stats")
    web.run_app(make_app(os.environ["ADMIN_TOKEN"]), host="127.0.0.1", port=8080)
