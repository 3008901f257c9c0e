"""The figures for Prometheus: a page in its text format, made of `middleware.stats`.

Try `python -m examples.metrics`, then a few times `curl http://127.0.0.1:8080/hello` at once, and
`curl http://127.0.0.1:8080/metrics`, which prints lines such as `reduce_requests_total{route="/hello"} 3`.
Put rules of your own before that page: whoever can reach this one sees it.
"""

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

from aiohttp import web

from aiohttp_reduce import never_reduce, reduce_middleware

METRICS = {
    "total": ("reduce_requests_total", "counter"),
    "executed": ("reduce_executed_total", "counter"),
    "reduced": ("reduce_reduced_total", "counter"),
    "errors": ("reduce_errors_total", "counter"),
    "in_flight": ("reduce_in_flight", "gauge"),
    "waiting": ("reduce_waiting", "gauge"),
}


def exposition(stats: Mapping[str, Any]) -> Iterator[str]:
    for figure, (metric, kind) in METRICS.items():
        yield f"# TYPE {metric} {kind}\n"
        for route, figures in stats["routes"].items():
            label = route.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
            yield f'{metric}{{route="{label}"}} {figures[figure]}\n'


async def read_greeting() -> None:
    """Stands for whatever is slow."""
    await asyncio.sleep(2)


async def hello(request: web.Request) -> web.Response:
    await read_greeting()
    return web.Response(text="hello\n")


def make_app() -> web.Application:
    middleware = reduce_middleware(stats_path=None)

    @never_reduce
    async def metrics(request: web.Request) -> web.Response:
        return web.Response(text="".join(exposition(middleware.stats)))

    app = web.Application(middlewares=[middleware])
    app.router.add_get("/hello", hello)
    app.router.add_get("/metrics", metrics)
    return app


if __name__ == "__main__":
    web.run_app(make_app(), host="127.0.0.1", port=8080)
