"""The OpenTelemetry instrumentation of aiohttp: a span for each request and call, in the trace that it belongs to."""

import asyncio
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from aiohttp_reduce import reduce_client_middleware
from tests.ecosystem.side_by_side import Twice, ask, twice
from tests.harness import Gate, Start, eventually
from tests.upstream import Exchange, OpenSession, StartUpstream

aiohttp_server = pytest.importorskip(
    "opentelemetry.instrumentation.aiohttp_server", reason="opentelemetry-instrumentation-aiohttp-server is missing"
)
aiohttp_client = pytest.importorskip(
    "opentelemetry.instrumentation.aiohttp_client", reason="opentelemetry-instrumentation-aiohttp-client is missing"
)
trace = pytest.importorskip("opentelemetry.trace")
sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="opentelemetry-sdk is not installed")
export = pytest.importorskip("opentelemetry.sdk.trace.export")
in_memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")

# It makes a subclass of `web.Application`.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class:DeprecationWarning")


class Spans:
    """The spans that have ended."""

    def __init__(self) -> None:
        self._exporter = in_memory.InMemorySpanExporter()
        self.provider = sdk.TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(export.SimpleSpanProcessor(self._exporter))

    def ended(self) -> list[Any]:
        return list(self._exporter.get_finished_spans())

    def traces(self) -> list[str]:
        return sorted(f"{span.context.trace_id:032x}" for span in self.ended())


@pytest.fixture
def server_spans() -> Iterator[Spans]:
    """The server is instrumented."""
    spans, instrumentor = Spans(), aiohttp_server.AioHttpServerInstrumentor()
    instrumentor.instrument(tracer_provider=spans.provider)
    yield spans
    instrumentor.uninstrument()


@pytest.fixture
def client_spans() -> Iterator[Spans]:
    """The client is instrumented."""
    spans, instrumentor = Spans(), aiohttp_client.AioHttpClientInstrumentor()
    instrumentor.instrument(tracer_provider=spans.provider)
    yield spans
    instrumentor.uninstrument()


TRACES = [f"{number:032x}" for number in (1, 2, 3, 4)]


def traced(trace_id: str) -> dict[str, str]:
    return {"traceparent": f"00-{trace_id}-00000000000000aa-01"}


async def served(serve: Start, handled_in: list[str]) -> Twice:
    async def build(doors: list[Any], gate: Gate) -> web.Application:
        async def report(request: web.Request) -> web.Response:
            handled_in.append(f"{trace.get_current_span().get_span_context().trace_id:032x}")
            await gate.wait()
            if "fail" in request.query:
                raise web.HTTPServiceUnavailable
            return web.Response(text="a report")

        app = web.Application(middlewares=doors)
        app.router.add_get("/{name}", report)
        return app

    return await twice(serve, build)


async def test_a_traced_server_is_as_without_us(serve: Start, server_spans: Spans) -> None:
    app = await served(serve, [])

    await app.is_the_same(ask("/one"), ask("/one", traced(TRACES[0])), ask("/one?fail"), ask("/", method="POST"))

    spans = [(span.name, span.status.status_code, dict(span.attributes)["http.status_code"]) for span in
             sorted(server_spans.ended(), key=lambda span: span.start_time)]  # fmt: skip
    assert len(spans) == 8
    assert spans[::2] == spans[1::2]


async def test_a_herd_takes_one_run_and_has_a_span_for_each_in_its_own_trace(serve: Start, server_spans: Spans) -> None:
    handled_in: list[str] = []
    app = await served(serve, handled_in)

    before = app.gate.runs
    await app.meet(*[ask("/one", traced(one)) for one in TRACES], runs=1)

    assert app.gate.runs == before + 1
    # Each was asked for of the other server as well.
    assert server_spans.traces() == sorted(TRACES * 2)
    assert {span.name for span in server_spans.ended()} == {"GET /{name}"}
    assert handled_in == [TRACES[0], *TRACES]


async def test_calls_with_a_span_each_are_one_request(
    upstream: StartUpstream, reducing: OpenSession, client_spans: Spans
) -> None:
    gate = Gate()

    async def answer(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.respond(b"a report")

    server = await upstream(answer)
    session = reducing()

    async def call() -> tuple[int, bytes]:
        async with session.get(server.url) as response:
            return response.status, await response.read()

    calls = [asyncio.ensure_future(call()) for _ in range(4)]
    await eventually(lambda: session.stats["waiting"] == 3 and gate.runs == 1)
    gate.open()

    assert await asyncio.gather(*calls) == [(200, b"a report")] * 4
    assert len(server.requests) == 1
    spans = client_spans.ended()
    assert len({span.context.trace_id for span in spans}) == len(spans) == 4
    assert {span.attributes["http.status_code"] for span in spans} == {200}
    # The request is in the trace of the call that sent it.
    sent = server.requests[0].headers["traceparent"].split("-")[1]
    assert sent in client_spans.traces()


@pytest.mark.parametrize("reduced", [False, True])
async def test_a_traced_genuine_session_is_as_without_us(
    upstream: StartUpstream, client_spans: Spans, reduced: bool
) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.respond(b"no", status="404 Not Found")

    server = await upstream(answer)
    middlewares = [reduce_client_middleware()] if reduced else []

    async with aiohttp.ClientSession(middlewares=middlewares) as session:
        async with session.get(server.url) as response:
            assert (response.status, await response.read()) == (404, b"no")
        with pytest.raises(aiohttp.ClientConnectorError):
            await session.get("http://127.0.0.1:1/")

    answered, failed = client_spans.ended()
    assert answered.attributes["http.status_code"] == 404
    assert f"{answered.context.trace_id:032x}" == server.requests[0].headers["traceparent"].split("-")[1]
    assert failed.status.description == "ClientConnectorError"
