"""The application of `tests.chaos`: a handler for each kind of target; together they end in every way."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import aiohttp
from aiohttp import web

from aiohttp_reduce import ReducingClientSession, never_reduce, reduce_middleware
from aiohttp_reduce.server import ReduceMiddleware
from tests.chaos_answers import REQUEST_ID, body_of

# Seconds after which the outer middleware answers 504 where it limits the time.
DEADLINE: Final = 0.3
SESSION: Final = web.AppKey("SESSION", ReducingClientSession)


class OddError(BaseException):
    """What a handler raises that is no Exception."""


class BrokenError(Exception):
    """What a handler raises in the middle of its body."""


class Scene:
    """What the handlers share: chance, a stock that is written, and an upstream."""

    def __init__(self, choose: random.Random, upstream: str, folder: Path) -> None:
        self.choose = choose
        self.upstream = upstream
        self.folder = folder
        self.stock: Counter[int] = Counter()
        self.runs: Counter[str] = Counter()
        self.closing = False
        # Requests for which a head was sent, as long as an outer middleware limits their time.
        self.limited: dict[str, bool] = {}

    def file(self, number: int) -> Path:
        """A file with the body of `/file/number`."""
        path = self.folder / str(number)
        if not path.exists():
            path.write_bytes(body_of("file", number))
        return path

    async def pause(self, *choices: float) -> None:
        seconds = self.choose.choice(choices)
        if seconds >= 0:
            await asyncio.sleep(seconds)

    async def pieces(self, body: bytes, broken: bool = False) -> AsyncIterator[bytes]:
        """A body in random pieces, at random times; broken off somewhere, if it is to be."""
        most = self.choose.choice((1_000, 10_000, 100_000))
        at = 0
        ends = self.choose.randrange(len(body)) if broken else len(body)
        while at < ends:
            size = min(self.choose.randint(len(body) // 30 + 1, most + len(body) // 30 + 1), ends - at)
            yield body[at : at + size]
            at += size
            await self.pause(-1, -1, 0, 0.001, 0.01)
        if broken:
            raise BrokenError

    async def stream(self, request: web.Request, body: bytes, broken: bool = False, **options: Any) -> Any:
        """Prepare a response, and write to it."""
        response = web.StreamResponse(headers=options.get("headers"))
        response.content_length = options.get("length")
        if options.get("compress") and request.method != "HEAD":  # aiohttp would send the end of a compressed body
            response.enable_compression()
        await response.prepare(request)
        async for piece in self.pieces(body, broken):
            if request.method != "HEAD":
                await response.write(piece)
        return response


Handle = Callable[[Scene, web.Request, str, int], Awaitable[Any]]
KINDS: Final[dict[str, Handle]] = {}


def kind(handle: Handle) -> Handle:
    """Register what answers the targets of this name."""
    KINDS[handle.__name__] = handle
    return handle


def text(body: bytes, **options: Any) -> web.Response:
    return web.Response(body=body, content_type="text/plain", **options)


@kind
async def at_once(scene: Scene, request: web.Request, name: str, number: int) -> Any:
    return text(body_of(name, number))


@kind
async def waits(scene: Scene, request: web.Request, name: str, number: int) -> Any:
    await scene.pause(0, 0.01, 0.05, 0.2)
    return text(body_of(name, number))


@kind
async def burns(scene: Scene, request: web.Request, name: str, number: int) -> Any:
    end = time.perf_counter() + 0.003
    while time.perf_counter() < end:
        pass
    return text(body_of(name, number))


@kind
async def outlasts(scene: Scene, request: web.Request, name: str, number: int) -> Any:
    """Takes longer than flights take followers, and sometimes than followers wait."""
    await scene.pause(0.3, 0.9)
    return text(body_of(name, number))


@kind
async def stream(scene: Scene, request: web.Request, name: str, number: int) -> Any:
    await scene.pause(-1, 0, 0.02)
    return await scene.stream(request, body_of(name, number))


@kind
async def sized(scene: Scene, request: web.Request, name: str, number: int) -> Any:
    body = body_of(name, number)
    return await scene.stream(request, body, length=len(body))


@kind
async def compressed_stream(scene: Scene, request: web.Request, name: str, number: int) -> Any:
    return await scene.stream(request, body_of(name, number), compress=True)


@kind
async def broken(scene: Scene, request: web.Request, name: str, number: int) -> Any:
    await scene.pause(-1, 0.02)
    return await scene.stream(request, body_of(name, number), scene.choose.random() < 0.7)


@kind
async def broken_sized(scene: Scene, request: web.Request, name: str, number: int) -> Any:
    body = body_of(name, number)
    return await scene.stream(request, body, scene.choose.random() < 0.7, length=len(body))


@kind
async def short(scene: Scene, request: web.Request, name: str, number: int) -> Any:
    """Says that there is more than it writes."""
    body = body_of(name, number)
    return await scene.stream(request, body[: scene.choose.choice((len(body), len(body) // 2))], length=len(body))


@kind
async def generator(scene: Scene, request: web.Request, name: str, number: int) -> Any:
    await scene.pause(-1, 0.02)
    return text(scene.pieces(body_of(name, number)))  # type: ignore[arg-type]


@kind
async def broken_generator(scene: Scene, request: web.Request, name: str, number: int) -> Any:
    return text(scene.pieces(body_of(name, number), scene.choose.random() < 0.7))  # type: ignore[arg-type]


@kind
async def late_stream(scene: Scene, request: web.Request, name: str, number: int) -> Any:
    """An outer middleware may give up waiting for it anywhere."""
    await scene.pause(0, 0.1, 0.28, 0.31)
    return await scene.stream(request, body_of(name, number))


@kind
async def compressed(scene: Scene, request: web.Request, name: str, number: int) -> Any:
    response = text(body_of(name, number))
    response.enable_compression()
    await scene.pause(-1, 0.01)
    return response


@kind
async def cancels(scene: Scene, request: web.Request, name: str, number: int) -> Any:
    """Cancels its own task, mostly; sometimes it takes no notice."""
    await scene.pause(0, 0.02)
    if scene.choose.random() < 0.7:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        try:
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            if scene.choose.random() < 0.7:
                raise
    return text(body_of(name, number))


@kind
async def cancels_itself(scene: Scene, request: web.Request, name: str, number: int) -> Any:
    """Raises CancelledError, without that anybody had cancelled it."""
    await scene.pause(0, 0.02)
    if scene.choose.random() < 0.5:
        raise asyncio.CancelledError
    return text(body_of(name, number))


@kind
async def raises(scene: Scene, request: web.Request, name: str, number: int) -> Any:
    await scene.pause(-1, 0.01)
    raise BrokenError


@kind
async def refuses(scene: Scene, request: web.Request, name: str, number: int) -> Any:
    await scene.pause(-1, 0.01)
    raise web.HTTPNotFound(text=body_of(name, number).decode())


@kind
async def odd(scene: Scene, request: web.Request, name: str, number: int) -> Any:
    await scene.pause(-1, 0.01)
    if scene.choose.random() < 0.5 and not scene.closing:  # aiohttp's shutdown would end with it
        raise OddError
    return text(body_of(name, number))


@kind
async def nothing(scene: Scene, request: web.Request, name: str, number: int) -> Any:
    await scene.pause(-1, 0.01)
    return None


@kind
async def transport(scene: Scene, request: web.Request, name: str, number: int) -> Any:
    """Looks at its connection, before and after its client may have left."""
    if request.transport is not None:
        request.transport.get_extra_info("peername")
    await scene.pause(0, 0.02)
    if request.transport is None or request.transport.is_closing():
        raise ConnectionResetError
    return text(body_of(name, number))


@kind
async def file(scene: Scene, request: web.Request, name: str, number: int) -> Any:
    await scene.pause(-1, 0.01)
    return web.FileResponse(scene.file(number), headers={"Content-Type": "text/plain"})


@kind
async def ranged(scene: Scene, request: web.Request, name: str, number: int) -> Any:
    """Answers conditions and ranges itself."""
    body, tag = body_of(name, number), f'"{number}"'
    asked, condition = request.http_range, request.headers.get("If-None-Match")
    await scene.pause(0, 0.02)
    if condition == tag:
        return web.Response(status=304, headers={"ETag": tag})
    if asked.start is None:
        return text(body, headers={"ETag": tag})
    part = body[asked]
    span = f"bytes {asked.start}-{asked.start + len(part) - 1}/{len(body)}"
    return text(part, status=206, headers={"ETag": tag, "Content-Range": span})


@kind
async def own(scene: Scene, request: web.Request, name: str, number: int) -> Any:
    """Sets a cookie that is for the one who asked."""
    ident = request.headers.get(REQUEST_ID, "")
    await scene.pause(0, 0.02)
    response = text(body_of(name, number))
    response.set_cookie("ident", ident)
    return response


@kind
async def varies(scene: Scene, request: web.Request, name: str, number: int) -> Any:
    """Says who asked, by a header that is not in the identity."""
    await scene.pause(0, 0.02)
    agent = request.headers.get("User-Agent", "")
    return text(agent.encode() + b"\n" + body_of(name, number))


@kind
async def stock(scene: Scene, request: web.Request, name: str, number: int) -> Any:
    """What was there when it began."""
    found = scene.stock[number]
    await scene.pause(0, 0.02, 0.1)
    body = b"%d\n" % found + body_of(name, number)
    if scene.choose.random() < 0.3:
        return await scene.stream(request, body, headers={"Content-Type": "text/plain"})
    return text(body)


@kind
async def limited(scene: Scene, request: web.Request, name: str, number: int) -> Any:
    """An outer middleware may give up waiting for it."""
    await scene.pause(0, 0.1, 0.28, 30)
    return text(body_of(name, number))


@kind
async def alone(scene: Scene, request: web.Request, name: str, number: int) -> Any:
    await scene.pause(0, 0.01)
    return text(body_of(name, number))


@kind
async def gateway(scene: Scene, request: web.Request, name: str, number: int) -> Any:
    limit = aiohttp.ClientTimeout(total=scene.choose.choice((0.2, 1, 5)))
    try:
        async with request.app[SESSION].get(f"{scene.upstream}/{name}/{number}", timeout=limit) as upstream:
            return text(await upstream.read())
    except (aiohttp.ClientError, TimeoutError):
        raise web.HTTPBadGateway from None


@kind
async def gateway_stream(scene: Scene, request: web.Request, name: str, number: int) -> Any:
    limit = aiohttp.ClientTimeout(total=scene.choose.choice((0.3, 5)))
    async with request.app[SESSION].get(f"{scene.upstream}/{name}/{number}", timeout=limit) as upstream:
        response = web.StreamResponse()
        await response.prepare(request)
        async for piece in upstream.content.iter_chunked(2**14):
            if request.method != "HEAD":
                await response.write(piece)
    return response


async def post(scene: Scene, request: web.Request, name: str, number: int) -> Any:
    """Every target can be written to: it says what was written, and the new stock."""
    received = await request.read()
    await scene.pause(-1, 0, 0.01)
    scene.stock[number] += name == "stock"
    return text(b"%d\n" % scene.stock[number] + received)


def make_app(scene: Scene, session_options: Mapping[str, Any], **options: Any) -> tuple[web.Application, Any]:
    """The application, and its middleware, made with these options."""

    @web.middleware
    async def limit_time(request: web.Request, handler: Any) -> Any:
        name = request.match_info["kind"]
        if name not in {"limited", "late_stream"}:
            return await handler(request)
        ident = request.headers.get(REQUEST_ID)
        if not ident:
            return await handler(request)
        scene.limited[ident] = False
        try:
            if scene.choose.random() < 0.5:
                return await asyncio.wait_for(handler(request), DEADLINE)
            async with asyncio.timeout(DEADLINE):
                return await handler(request)
        except TimeoutError:
            if scene.limited[ident]:
                raise  # a second head would be taken for a part of the body
            return text(b"too late", status=504)
        finally:
            del scene.limited[ident]

    async def handler(request: web.Request) -> Any:
        name, number = request.match_info["kind"], int(request.match_info["number"])
        scene.runs[name] += 1
        return await (post if request.method == "POST" else KINDS[name])(scene, request, name, number)

    @never_reduce
    async def never(request: web.Request) -> Any:
        return await handler(request)

    async def tell(request: web.BaseRequest, response: web.StreamResponse) -> None:
        ident = request.headers.get(REQUEST_ID, "")
        response.headers["X-For"] = ident
        if ident in scene.limited:
            scene.limited[ident] = True

    async def session(app: web.Application) -> AsyncIterator[None]:
        async with ReducingClientSession(**session_options) as session:
            app[SESSION] = session
            middleware.watch(session, name="upstream")
            yield

    middleware: ReduceMiddleware = reduce_middleware(**options)
    app = web.Application(middlewares=[limit_time, middleware])
    app.on_response_prepare.append(tell)
    app.cleanup_ctx.append(session)
    for name in KINDS:
        app.router.add_route("*", rf"/{{kind:{name}}}/{{number:\d+}}", never if name == "alone" else handler)
    return app, middleware
