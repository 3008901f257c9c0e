"""What followers are given: a handler's outcome as it was when the handler ended, made anew for each of them.

An outcome never changes once it is captured, and never holds what belongs to one request only.
"""

import logging
import re
import time
from collections.abc import Callable, Hashable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol

from aiohttp import hdrs, web
from multidict import CIMultiDict

from .. import _aiohttp
from ..failures import copied
from ..headers import TRACING
from ..policy import SHARED, Verdict, judge
from ..stats import Unshared
from .compression import SharedCompression
from .identity import Selection
from .reads import Notes, Reads, RecordedHeaders, same_lines

if TYPE_CHECKING:
    from .reading import Reader

logger: logging.Logger = logging.getLogger("aiohttp_reduce")

Share = Callable[[web.Request, web.StreamResponse], bool | None]

# Shorter values ("1", "sampled") stand in other headers by chance.
_MIN_TRACE_ID: Final = 8
# Names of headers that may repeat such a value under another name. Not just any: whoever leads chooses the value,
# and must not take a Content-Security-Policy away from the others with it.
_TRACE_NAME: Final = re.compile(r"(?:^|-)(?:trace|span|request|correlation)(?:-|$)", re.IGNORECASE)


class Asker(Protocol):
    """A follower: its request, the request mapping as it was when it came, and its reader of a stream if it has one."""

    request: web.Request
    mapping: Mapping[Any, Any]
    has_attributes: bool
    seat: "Reader | None"

    def turned_away(self, outcome: "Outcome", reason: Unshared, name: str | None) -> None:
        """It was refused this outcome."""


class Outcome:
    """How a handler ended. `leader` is the request whose handler ran, `verdict` says who may share the answer.

    `reads` is what the handler looked at that a follower may have otherwise. `raised` says whether followers
    raise what `make` gives them, rather than return it; `herd` is how many requests it is for, leader included;
    `free` that it is known to be for everybody who waited; `told` why somebody was turned away, as logged, a hundred
    reasons at most;
    `passes` the pass marker (target and identity) that was set because of it.
    """

    __slots__ = ("free", "herd", "leader", "passes", "raised", "reads", "told", "verdict")

    # Whether there is more to give to a follower than what `make` makes: see `Stream`.
    is_stream = False

    def __init__(self, leader: web.Request, verdict: Verdict = SHARED, *, raised: bool = False) -> None:
        self.leader: web.Request = leader
        self.verdict: Verdict = verdict
        self.reads: Reads | None = None
        self.raised: bool = raised
        self.herd: int = 1
        self.free: bool = False
        self.told: tuple[object, ...] = ()
        self.passes: tuple[str, Hashable] | None = None

    @property
    def for_nobody_else(self) -> bool:
        """Whether no follower may share it, whatever it asked for."""
        return self.settled().reason is not None or (self.reads is not None and bool(self.reads.changed))

    def settled(self) -> Verdict:
        """The verdict."""
        return self.verdict

    def add_reads(self, reads: Reads) -> None:
        """What the handler had looked at when it ended."""
        if reads.written is not None and self.verdict.reason is None:
            self.verdict = Verdict(Unshared.STATE_WRITTEN, reads.written)
        if reads.names or reads.items or reads.attributes:
            self.reads = reads

    def refuses(self, asker: Asker) -> tuple[Unshared, str | None] | None:
        """Why this follower is turned away, and the header, item or status that is the reason; None if it may share."""
        if asker.has_attributes:
            known = self.reads.attributes if self.reads is not None else {}
            unknown = _aiohttp.own_attributes(asker.request).keys() - known.keys()
            if unknown and self.settled().reason is None:
                return Unshared.STATE, min(unknown)
        if self.free:
            return None
        verdict = self.settled()
        reads = self.reads
        if verdict == SHARED and (reads is None or not reads.compares):
            self.free = True
            return None
        if verdict.reason is not None:
            return verdict.reason, verdict.name
        request = asker.request
        if verdict.unauthorized_only and hdrs.AUTHORIZATION in _aiohttp.received_headers(request):
            return Unshared.AUTHORIZATION, None
        for name in verdict.vary:
            if not same_lines(name, self.leader, request):
                return Unshared.VARY, name
        return None if reads is None else reads.refuses(self.leader, request, asker.mapping)

    def make(self) -> Any:
        """For one follower, its own of what the handler returned or raised."""
        raise NotImplementedError

    def attach(self, asker: Asker) -> None:
        """Of a stream: see `Stream`."""
        raise NotImplementedError

    def seated(self, made: Any, asker: Asker) -> Any:
        """Of a stream: see `Stream`."""
        raise NotImplementedError

    async def deliver(self, made: Any, asker: Asker) -> web.StreamResponse:
        """Of a stream: see `Stream`."""
        raise NotImplementedError


class Answer(Outcome):
    """A response, returned or raised as an HTTPException.

    Made at the handler's end, it only keeps what may change afterwards; the rest is worked out when somebody
    wants it (m: a lone request whose handler takes over a millisecond pays 2 us here instead of 9).
    """

    __slots__ = (
        "_args",
        "_cls",
        "_compression",
        "_containers",
        "_cookies",
        "_fields",
        "_has_key",
        "_headers",
        "_rules",
        "_settled",
        "_share",
        "_state",
        "_status",
        "is_simple",
    )

    def __init__(
        self,
        leader: web.Request,
        response: web.StreamResponse,
        *,
        raised: bool,
        rules: "Rules",
        share: bool | None,
        has_key: bool,
    ) -> None:
        super().__init__(leader, raised=raised)
        # Whether it is known that everybody may have it, and that `make_another` makes it.
        self.is_simple: bool = False
        self._rules = rules
        self._share = share
        self._has_key = has_key
        self._settled = False
        self._cls = type(response)
        self._status = response.status
        self._args = response.args if isinstance(response, web.HTTPException) else None
        self._fields = vars(response).copy()
        self._containers: tuple[str, ...] = ()
        if self._cls is not web.Response:
            self._fields = _aiohttp.fields_of_any_sending(self._fields)
            self._containers = _aiohttp.containers_in(self._fields)
        self._state = _aiohttp.response_state(response)
        self._headers = response.headers.copy()
        self._cookies = _aiohttp.copied_jar(response.cookies) if _aiohttp.sets_cookies(response) else None
        if isinstance(response, web.Response):
            is_repeatable, body = _aiohttp.repeatable_body(response.body)
            self._fields["_body"] = body if is_repeatable else response.body
        self._compression: SharedCompression | None = None
        if response.compression and _aiohttp.compresses_whole_body(response):
            self._compression = SharedCompression(self._fields["_body"])
            self._compression.attach(response)

    def settled(self) -> Verdict:
        if not self._settled:
            self._settle()
        return self.verdict

    def make(self) -> web.StreamResponse:
        response = self.make_another()
        _aiohttp.add_copies(response, self._fields, self._containers, self._cookies)
        if self._compression is not None:
            self._compression.attach(response)
        in_pieces = _aiohttp.send_in_pieces(response)
        if self._args is not None:
            assert isinstance(response, web.HTTPException)
            response.args = self._args
        elif not (in_pieces or self._containers or self._cookies or self._compression):
            self.is_simple = self.free and not self.raised
        return response

    def make_another(self) -> web.StreamResponse:
        """What `make` makes, where `is_simple`."""
        return _aiohttp.rebuild(self._cls, self._fields, self._headers, self._state)

    def _settle(self) -> None:
        self._settled = True
        if self.verdict.reason is not None:
            return
        self.verdict = Verdict(Unshared.RESPONSE_CLASS)  # should anything fail here
        verdict = SHARED
        if self._share is None:
            verdict = self._rules.judge(self.leader, self._status, self._headers, has_key=self._has_key)
        self._fields = _aiohttp.fields_of_any_sending(self._fields)
        self._containers = _aiohttp.containers_in(self._fields)
        _remove_trace(self._headers, self.leader)
        if self._rules.cache_status is not None:
            self._headers.add("Cache-Status", f"{self._rules.cache_status}; fwd=miss; collapsed")
        self.verdict: Verdict = verdict


class Rules:
    """How one middleware object judges answers, and marks those of followers."""

    __slots__ = ("cache_status", "ignore_state", "selection", "share")

    def __init__(
        self, selection: Selection, share: Share | None, cache_status: str | None, ignore_state: frozenset[Hashable]
    ) -> None:
        self.selection: Selection = selection
        self.share: Share | None = share
        self.cache_status: str | None = cache_status
        self.ignore_state: frozenset[Hashable] = ignore_state

    def reads(self, run: RecordedHeaders) -> Reads | None:
        """What the handler has looked at so far; None for nothing."""
        attributes = _aiohttp.own_attributes(run.request)
        notes = run.kept_notes
        if notes is None and not attributes:
            return None
        return Reads(notes or Notes(), run.request, attributes, self.selection, self.ignore_state)

    def judge(self, leader: web.Request, status: int, headers: CIMultiDict[str], *, has_key: bool) -> Verdict:
        """What the answer's status and headers say; `has_key`: `key` gave a value."""
        return judge(
            status,
            headers,
            authorized=hdrs.AUTHORIZATION in _aiohttp.received_headers(leader),
            has_credentials=has_key or self.selection.has_credentials(leader),
            in_identity=self.selection.holds_all_of,
            now=time.time(),
        )

    def asked(self, leader: web.Request, response: web.StreamResponse) -> bool | Unshared | None:
        """What `share` says of this answer; a reason where it went wrong."""
        if self.share is None:
            return None
        try:
            said = self.share(leader, response)
            if said is None or isinstance(said, bool):
                return said
            raise TypeError(f"share takes a function that returns a bool or None, it returned {said!r}")
        except Exception:
            logger.exception("share failed for %r; the answer is not shared", leader)
            return Unshared.SHARE_ERROR


class Failure(Outcome):
    """An exception that is no HTTPException; each follower raises a copy, where copying works."""

    __slots__ = ("_exception", "_traceback")

    def __init__(self, leader: web.Request, exception: BaseException) -> None:
        super().__init__(leader, raised=True)
        self._exception = exception
        self._traceback: TracebackType | None = exception.__traceback__

    def make(self) -> BaseException:
        # With the handler's traceback; what a raise adds goes on top of it, in the copy alone.
        return copied(self._exception).with_traceback(self._traceback)


class Returned(Outcome):
    """A value that is no response: aiohttp answers 500 for it, and so it does for each follower."""

    __slots__ = ("_value",)

    def __init__(self, leader: web.Request, value: Any) -> None:
        super().__init__(leader)
        self._value = value

    def make(self) -> Any:
        return self._value


def captured(
    leader: web.Request,
    response: Any,
    *,
    raised: bool,
    rules: Rules,
    has_key: bool,
    stream: "Callable[..., Outcome] | None" = None,
    prepared: bool = False,
) -> Outcome:
    """The outcome of a handler that returned `response`, or raised it as an HTTPException.

    `stream` makes the outcome where the body is still to come: of a response with a body that can be read only
    once, or, with `prepared`, of one that is being prepared now.
    """
    if not isinstance(response, web.StreamResponse):
        return Returned(leader, response)
    reason = _cannot_be_streamed(response) if prepared else _cannot_be_replayed(response)
    flows = prepared
    if reason is Unshared.ONE_SHOT_BODY:
        flows = not _aiohttp.has_no_body(leader, response)
        if not flows or stream is not None:
            reason = None
    if reason is not None:
        return Outcome(leader, Verdict(reason))
    said = rules.asked(leader, response)
    if isinstance(said, Unshared):
        return Outcome(leader, Verdict(said))
    if said is False:
        return Outcome(leader, Verdict(Unshared.SHARE))
    if said is None and _aiohttp.sets_cookies(response):
        return Outcome(leader, Verdict(Unshared.SET_COOKIE))
    if flows:
        assert stream is not None
        return stream(response, raised=raised, rules=rules, share=said, has_key=has_key)
    return Answer(leader, response, raised=raised, rules=rules, share=said, has_key=has_key)


def _cannot_be_replayed(response: web.StreamResponse) -> Unshared | None:
    if response.prepared or isinstance(response, web.WebSocketResponse):
        return Unshared.STREAM
    if _aiohttp.sends_its_body_itself(response):
        return Unshared.RESPONSE_CLASS
    if isinstance(response, web.Response) and not _aiohttp.repeatable_body(response.body)[0]:
        return Unshared.ONE_SHOT_BODY
    return None


def _cannot_be_streamed(response: web.StreamResponse) -> Unshared | None:
    """Why nobody else can be sent what is written to a response that is being prepared."""
    if isinstance(response, (web.WebSocketResponse, web.FileResponse)) or _aiohttp.is_compressed_further_in(response):
        return Unshared.STREAM
    if isinstance(response, web.Response) and (response.compression or not _aiohttp.repeatable_body(response.body)[0]):
        # It has a body of its own beside what is written, and who sends that, and in what form?
        return Unshared.STREAM
    return Unshared.RESPONSE_CLASS if _aiohttp.sends_its_body_itself(response) else None


def _remove_trace(headers: CIMultiDict[str], leader: web.Request) -> None:
    """Take out what repeats the headers that name the leader's request in a trace."""
    names = {name.lower(): value for name, value in _aiohttp.received_headers(leader).items() if name in TRACING}
    if names:
        values = {value for value in names.values() if len(value) >= _MIN_TRACE_ID}
        for name in list(headers.keys()):
            repeats = _TRACE_NAME.search(name) and values.intersection(headers.getall(name, ()))
            if name.lower() in names or repeats:
                headers.popall(name, None)


def mark_not_collapsed(response: Any, cache_status: str | None) -> None:
    """Say in an answer that its request had waited and then ran by itself (RFC 9211, 2.5)."""
    if cache_status is not None and isinstance(response, web.StreamResponse):
        response.headers.add("Cache-Status", f"{cache_status}; fwd=miss; collapsed=?0")
