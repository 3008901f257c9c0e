"""An application for gunicorn: a page that is held until the server shuts down."""

import asyncio
from typing import Any

from aiohttp import web

from aiohttp_reduce import reduce_middleware
from tests.harness import Gate


async def page(request: web.Request) -> web.Response:
    """What the tests compare and count."""
    user = request.headers.get("X-User")
    run = await request.app[GATE].wait()
    text = f"for {user}, in run {run}"
    return web.Response(text=text, headers={"X-Loop": type(asyncio.get_running_loop()).__module__.partition(".")[0]})


async def other(request: web.Request) -> web.Response:
    """An answer that is always the same."""
    response = web.json_response({"for": request.query.get("for")}, headers={"X-Answer": "42"})
    if "cookie" in request.query:
        response.set_cookie("visited", "yes")
    return response


async def let_go(app: web.Application) -> None:
    """The server shuts down, and has stopped to listen."""
    app[GATE].open()


GATE = web.AppKey("gate", Gate)


def made(*middlewares: Any) -> web.Application:
    """The application, with these middlewares."""
    app = web.Application(middlewares=middlewares)
    app[GATE] = Gate()
    app.router.add_get("/page", page)
    app.router.add_get("/other", other)
    app.on_shutdown.append(let_go)
    return app


async def reduced() -> web.Application:
    """The application with us."""
    return made(reduce_middleware())


app = made(reduce_middleware())
