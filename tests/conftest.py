"""What all tests share: both event loops, and a real server on a real socket."""

import asyncio
import datetime
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from aiohttp_reduce import ReducingClientSession
from aiohttp_reduce.broadcast import Broadcast
from aiohttp_reduce.server import streams as server_streams
from tests.harness import Server, eventually
from tests.upstream import Answer, OpenSession, StartUpstream, Upstream, nothing_is_left, reducer_of

try:
    import uvloop
except ImportError:  # pragma: no cover
    uvloop = None  # type: ignore[assignment]


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Every asynchronous test runs on asyncio and on uvloop; those marked `one_loop` on asyncio alone."""
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    if uvloop is not None and item.get_closest_marker("one_loop") is None:
        factories["uvloop"] = uvloop.new_event_loop
    return factories


def pytest_collection_finish(session: pytest.Session) -> None:
    """Many tests collect garbage, and what pytest and the test modules hold never is any: it need not be looked at."""
    gc.collect()
    gc.freeze()


@pytest_asyncio.fixture
async def serve() -> AsyncIterator[Callable[..., Awaitable[Server]]]:
    """Start servers for applications; `handler_cancellation` and the like go to aiohttp's `AppRunner`."""
    servers: list[Server] = []

    async def start(app: web.Application, **options: Any) -> Server:
        server = Server(app, **options)
        servers.append(server)
        await server.start()
        return server

    yield start
    for server in servers:
        await server.stop()


@pytest_asyncio.fixture
async def noise(caplog: pytest.LogCaptureFixture) -> AsyncIterator[list[Any]]:
    """What the loop's exception handler and asyncio's log were told; the test fails if it is anything."""
    told: list[Any] = []
    gc.collect()  # what earlier tests left behind
    caplog.clear()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: told.append(context))
    yield told
    await asyncio.sleep(0)
    gc.collect()
    loop.set_exception_handler(None)
    assert not told
    assert not [record for record in caplog.records if record.name == "asyncio"]


@pytest_asyncio.fixture
async def quiet(caplog: pytest.LogCaptureFixture) -> AsyncIterator[list[Any]]:
    """As `noise`, without looking for what only a collection of garbage tells: for the many."""
    told: list[Any] = []
    caplog.clear()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _loop, context: told.append(context))
    yield told
    await asyncio.sleep(0)
    loop.set_exception_handler(None)
    assert not told
    assert not [record for record in caplog.records if record.name == "asyncio"]


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set the seconds for which slow readers may hold up others: all of them in turn, and the first of them."""

    def set_times(*, stall: float = 60.0, first: float = 60.0) -> None:
        defaults: dict[str, Any] = Broadcast.__init__.__kwdefaults__ or {}
        monkeypatch.setitem(defaults, "stall_timeout", stall)
        monkeypatch.setattr(server_streams, "_FIRST_TIMEOUT", first)

    return set_times


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed authority, a server certificate and two client certificates, in PEM files."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    folder = tmp_path_factory.mktemp("certificates")
    now = datetime.datetime.now(datetime.UTC)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])

    def write(name: str) -> None:
        own = authority_key if name == "authority" else ec.generate_private_key(ec.SECP256R1())
        subject = authority_name if name == "authority" else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(authority_name)
            .public_key(own.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
            .add_extension(x509.BasicConstraints(ca=name == "authority", path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(own.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
            )
            .add_extension(
                x509.KeyUsage(
                    digital_signature=True,
                    key_cert_sign=name == "authority",
                    crl_sign=name == "authority",
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
            .sign(authority_key, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        private = own.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(pem) + private)

    for name in ("authority", "server", "alice", "bob"):
        write(name)
    return folder


@pytest_asyncio.fixture
async def upstream() -> AsyncIterator[StartUpstream]:
    """Start upstreams whose answers are what a function sends."""
    started: list[Upstream] = []

    async def start(answer: Answer) -> Upstream:
        one = Upstream(answer)
        await one.start()
        started.append(one)
        return one

    yield start
    for one in started:
        await one.stop()


@pytest_asyncio.fixture
async def reducing() -> AsyncIterator[OpenSession]:
    """Open sessions that reduce; in the end they are closed, and nothing of them may be left."""
    opened: list[ReducingClientSession] = []

    def open_session(*args: Any, **options: Any) -> ReducingClientSession:
        session = ReducingClientSession(*args, **options)
        opened.append(session)
        return session

    yield open_session
    for session in opened:
        await session.close()
        await session.session.close()
        await eventually(lambda: nothing_is_left(reducer_of(session)))  # noqa: B023 - called at once
