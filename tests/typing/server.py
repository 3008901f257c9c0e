"""What users see of the server side under `mypy --strict` and pyright; checked, never run."""

from collections.abc import Awaitable, Callable, Hashable
from typing import Any, assert_type

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from aiohttp_reduce import never_reduce, reduce_client_middleware, reduce_middleware
from aiohttp_reduce.hooks import BaseHooks, DebugHooks, StatisticsDetailHooks
from aiohttp_reduce.server import DEFAULT_IGNORE_COOKIES, DEFAULT_IGNORE_HEADERS, ReduceMiddleware, local_only
from aiohttp_reduce.stats import Bypass, Unshared


def by_user(request: web.Request) -> str | None:
    return request.headers.get("X-User")


def by_two(request: web.Request) -> tuple[str, int]:
    return request.host, 1


def is_small(request: web.BaseRequest) -> bool:
    return request.content_length is None


def share_redirects(request: web.Request, response: web.StreamResponse) -> bool | None:
    return True if response.status == 302 else None


def share_all(request: web.BaseRequest, response: web.StreamResponse) -> bool:
    return True


async def is_admin(request: web.Request) -> bool:
    return "admin" in request


class Rules:
    def __call__(self, request: web.Request) -> bool:
        return True

    async def asks(self, request: web.Request) -> bool:
        return True

    def of(self, request: web.Request) -> Awaitable[bool]:
        return self.asks(request)


def it_is_a_middleware() -> None:
    middleware = reduce_middleware()
    assert_type(middleware, ReduceMiddleware)
    app = web.Application(middlewares=[middleware])
    app.middlewares.append(reduce_middleware())
    app.middlewares.insert(0, middleware)
    is_one: Middleware = middleware
    web.Application(middlewares=(is_one, reduce_middleware()))


async def it_is_called_as_one(middleware: ReduceMiddleware, request: web.Request, handler: Handler) -> None:
    assert_type(await middleware(request, handler), web.StreamResponse)


def names_are_any_iterable_of_them() -> None:
    reduce_middleware(methods=["GET"], headers=("Accept",), ignore_headers={"X-Noise-*"}, ignore_cookies=iter(["a"]))
    reduce_middleware(ignore_headers=DEFAULT_IGNORE_HEADERS | {"X-Build"})
    reduce_middleware(ignore_cookies=DEFAULT_IGNORE_COOKIES | {"theme"})
    reduce_middleware(headers=None, ignore_state=("user",))
    assert_type(DEFAULT_IGNORE_HEADERS, frozenset[str])
    assert_type(DEFAULT_IGNORE_COOKIES, frozenset[str])


def functions_are_plain(rules: Rules) -> None:
    reduce_middleware(key=None, when=None, share=None)
    reduce_middleware(key=by_user, when=is_small, share=share_redirects)
    reduce_middleware(key=by_two, when=rules, share=share_all)
    reduce_middleware(key=lambda request: request.host, when=lambda request: "share" in request.query)
    reduce_middleware(share=lambda request, response: True if response.status == 302 else None)
    made: Callable[[web.Request], Hashable] = by_user
    reduce_middleware(key=made)


def stats_access_is_sync_or_async(rules: Rules) -> None:
    reduce_middleware(stats_access=local_only)
    reduce_middleware(stats_access=is_admin)
    reduce_middleware(stats_access=is_small)
    reduce_middleware(stats_access=rules)
    reduce_middleware(stats_access=rules.asks)
    reduce_middleware(stats_access=rules.of)
    reduce_middleware(stats_access=lambda request: request.remote == "10.0.0.1")
    reduce_middleware(stats_path=None, cache_status=None)


def numbers_may_be_whole_or_not() -> None:
    reduce_middleware(max_age=1, max_wait=2.5, max_buffer=0, max_buffer_total=2**20)


def hooks_are_the_cores() -> None:
    class Mine(BaseHooks):
        pass

    reduce_middleware(hooks=Mine())
    reduce_middleware(hooks=Mine() & DebugHooks() & StatisticsDetailHooks())
    reduce_middleware(hooks=None)


async def what_it_offers(middleware: ReduceMiddleware, request: web.Request) -> None:
    assert_type(middleware.stats, dict[str, Any])
    assert_type(await middleware.stats_handler(request), web.Response)
    app = web.Application()
    app.router.add_get("/admin/reduce", middleware.stats_handler)
    middleware.forget("/news")
    middleware.watch(reduce_client_middleware(), name="maps")


def reasons_are_strings() -> None:
    def takes_text(text: str) -> None: ...

    takes_text(Bypass.METHOD)
    takes_text(Unshared.VARY)
    assert_type(Bypass.METHOD.description, str)
    assert_type(Unshared("vary"), Unshared)
    assert_type([reason.value for reason in Unshared], list[str])


# `never_reduce` gives back what it took.


@never_reduce
async def lottery(request: web.Request) -> web.Response:
    return web.Response(text=request.path)


@never_reduce
async def with_more(request: web.Request, *, rows: int = 1) -> web.StreamResponse:
    return web.Response(text="row" * rows)


class Service:
    @never_reduce
    async def handle(self, request: web.Request) -> web.Response:
        return web.Response()


@never_reduce
class WholeView(web.View):
    async def get(self) -> web.Response:
        return web.Response()


class PartlyView(web.View):
    @never_reduce
    async def get(self) -> web.Response:
        return web.Response()


async def marked_handlers_keep_their_types(request: web.Request) -> None:
    assert_type(await lottery(request), web.Response)
    assert_type(await with_more(request, rows=2), web.StreamResponse)
    assert_type(await Service().handle(request), web.Response)
    assert_type(WholeView(request), WholeView)
    assert_type(await WholeView(request).get(), web.Response)
    assert_type(await PartlyView(request).get(), web.Response)
    app = web.Application()
    app.router.add_get("/lottery", lottery)
    app.router.add_get("/service", Service().handle)
    app.router.add_view("/whole", WholeView)
    app.router.add_routes([web.get("/more", with_more), web.view("/partly", PartlyView)])


async def mistakes_are_found(middleware: ReduceMiddleware, request: web.Request) -> None:
    def takes_nothing() -> bool:
        return True

    async def later(request: web.Request) -> str:
        return "a"

    async def decides_later(request: web.Request, response: web.StreamResponse) -> bool:
        return True

    def lists(request: web.Request) -> list[str]:
        return ["unhashable"]

    reduce_middleware(["GET"])  # type: ignore[call-arg]
    reduce_middleware(nonsense=1)  # type: ignore[call-arg]
    reduce_middleware(methods=1)  # type: ignore[arg-type]
    reduce_middleware(headers=[1])  # type: ignore[list-item]
    reduce_middleware(ignore_state=[["unhashable"]])  # type: ignore[list-item]
    reduce_middleware(max_age="5")  # type: ignore[arg-type]
    reduce_middleware(max_wait=None)  # type: ignore[arg-type]
    reduce_middleware(key="user")  # type: ignore[arg-type]
    reduce_middleware(key=takes_nothing)  # type: ignore[arg-type]
    reduce_middleware(key=lists)  # type: ignore[arg-type]
    reduce_middleware(when=later)  # type: ignore[arg-type]
    reduce_middleware(share=is_small)  # type: ignore[arg-type]
    reduce_middleware(share=decides_later)  # type: ignore[arg-type]
    reduce_middleware(stats_access=takes_nothing)  # type: ignore[arg-type]
    reduce_middleware(stats_access=later)  # type: ignore[arg-type]
    reduce_middleware(stats_path=1)  # type: ignore[arg-type]
    reduce_middleware(hooks=BaseHooks)  # type: ignore[arg-type]
    middleware.forget(1)  # type: ignore[arg-type]
    middleware.watch(reduce_client_middleware(), "maps")  # type: ignore[call-arg]
    middleware.stats = {}  # type: ignore[misc]
    never_reduce("handler")  # type: ignore[type-var]
    never_reduce()  # type: ignore[call-arg]
    await lottery()  # type: ignore[call-arg]
    await with_more(request, rows="2")  # type: ignore[arg-type]
    Bypass.NONSENSE  # type: ignore[attr-defined]  # noqa: B018
