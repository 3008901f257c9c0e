"""What a leader's handler looked at while it ran, and in which of that a follower differs.

`RecordedHeaders` and `RecordedState` stand in for the request's headers and mapping while the handler (and every
middleware inside us) runs. They only note; what is compared, and with whom, is decided at its end by `Reads`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterator, Mapping, MutableMapping
from typing import Any, Final

from aiohttp import web
from multidict import CIMultiDictProxy, MultiMapping

from .. import _aiohttp
from .._aiohttp import EVERYTHING, REMOTE
from ..headers import TRACING
from ..stats import Unshared
from .identity import Selection
from .values import MISSING, frozen, is_same


class Notes:
    """What was looked at in one run of a handler.

    `names` are header names as they were written, with `EVERYTHING` and `REMOTE` among them, and how often each was
    looked at; `items` those of the
    request mapping, with what they were when they were first looked at; `written` those that were set or deleted.
    """

    __slots__ = ("items", "names", "written")

    def __init__(self) -> None:
        self.names: dict[str, int] = {}
        self.items: dict[Hashable, tuple[Any, Any]] = {}
        self.written: dict[Hashable, None] = {}


class NotesAside(Notes):
    """Taken while somebody else looks as well: what one task looks at (`forgets` says of a task whether it is that
    one) is forgotten, everything else goes to `kept`, the handler's."""

    __slots__ = ("forgets", "kept")

    def __init__(self, kept: Notes, forgets: Callable[[Any], bool]) -> None:
        super().__init__()
        self.kept: Notes = kept
        self.forgets: Callable[[Any], bool] = forgets

    def __getattribute__(self, name: str) -> Any:
        if name in _OF_NOTES:
            # (There is no task in another thread, which is the handler's then.)
            task = asyncio.current_task() if asyncio._get_running_loop() is not None else None
            if task is None or not object.__getattribute__(self, "forgets")(task):
                return getattr(object.__getattribute__(self, "kept"), name)
        return object.__getattribute__(self, name)


_OF_NOTES: Final = frozenset(Notes.__slots__)


class RecordedHeaders:
    """A request's headers that note which are looked at; otherwise they are as aiohttp's own.

    Not a subclass of `CIMultiDictProxy`, although it says so when asked: what is written in C, such as
    `CIMultiDict(request.headers)`, would read past the methods of a subclass.

    One for each run of a handler: `request`, `opened` and `flight` are who leads, since when, and the flight,
    which is None as long as nobody has met the run (most runs need no flight then; m: 0.25 us for each); `table` and
    `route` are where it is to be found, and whose figures count. `notes` is None as long as nothing was looked at.
    """

    __slots__ = (
        "__weakref__", "flight", "is_odd", "key_value", "late", "looked_up", "notes", "opened", "peername", "request",
        "route", "table", "task", "under",
    )  # fmt: skip

    request: web.Request
    opened: float
    flight: Any
    table: Any
    route: Any
    # The task of the handler, or None: it is the connection's own, and was not cancelled before.
    task: Any
    # The `LateRun`, if it is one.
    late: Any
    # Whether there was something about the request, at its arrival, that its target and headers do not say.
    is_odd: bool
    # The typed value of `key`, for the flight.
    key_value: Hashable
    # Set by `_aiohttp.lend`; the last three are for it and `take_back` alone.
    notes: Notes | None
    looked_up: int
    peername: Any
    under: Any

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return CIMultiDictProxy

    @property
    def is_over(self) -> bool:
        """Whether the handler has ended."""
        return self.looked_up < 0

    def met(self) -> Any:
        """The flight, from now on, if there was none."""
        if self.flight is None:
            self.flight = self.table.meet(_aiohttp.target_of(self.request), self)
        return self.flight

    def taking_notes(self) -> Notes:
        """The notes, begun if there are none."""
        notes = self.notes
        if notes is None:
            notes = self.notes = Notes()
        return notes

    def prepares(self, response: web.StreamResponse | None) -> None:
        """A response is being prepared for this request. (`_aiohttp.Heads`)"""
        self.table.landing.begin(self, response)

    def signals_begin(self, response: web.StreamResponse) -> Any:
        """They are sent for each request: what they look at is no matter of the handler's."""
        return self.look_aside()

    def signals_end(self, before: Any) -> None:
        """They were sent."""
        self.look_back(before)

    def __call__(self, response: web.StreamResponse) -> Awaitable[None]:
        # In the place of the request's own hook. (m: an object of its own for that would cost each request 0.2 us.)
        return _aiohttp.tell_of_head(self.request, self, response)

    def note(self, name: object) -> None:
        """Note that a header, `EVERYTHING` or `REMOTE` was looked at."""
        if isinstance(name, str):
            names = self.taking_notes().names
            names[name] = names.get(name, 0) + 1

    @property
    def kept_notes(self) -> Notes | None:
        """What the handler itself has looked at."""
        notes = self.notes
        return notes.kept if isinstance(notes, NotesAside) else notes

    def look_aside(self) -> tuple[Notes, dict[str, Any]]:
        """Let what this task looks at be no matter of the handler's, until `look_back` with what this returns."""
        looked_up = _aiohttp.look_aside(self)
        notes = self.taking_notes()
        this = asyncio.current_task()
        self.notes = NotesAside(self.kept_notes or notes, lambda task: task is this)
        return notes, looked_up

    def look_back(self, before: tuple[Notes, dict[str, Any]]) -> None:
        """The handler looks again."""
        self.notes, looked_up = before
        _aiohttp.look_back(self, looked_up)

    def forget_one_look(self, name: str) -> None:
        """A header (its name in lower case) was looked at once by aiohttp itself, beside what the handler did."""
        names = {} if self.notes is None else self.notes.names
        looks = [written for written in names if written.lower() == name]
        if sum([names[written] for written in looks]) == 1:
            del names[looks[0]]

    def __getitem__(self, name: str) -> Any:
        self.note(name)
        return self.under[name]

    def __contains__(self, name: object) -> bool:
        self.note(name)
        return name in self.under

    def get(self, key: str, *args: Any, **kwargs: Any) -> Any:
        self.note(key)
        return self.under.get(key, *args, **kwargs)

    def getone(self, key: str, *args: Any, **kwargs: Any) -> Any:
        self.note(key)
        return self.under.getone(key, *args, **kwargs)

    def getall(self, key: str, *args: Any, **kwargs: Any) -> Any:
        self.note(key)
        return self.under.getall(key, *args, **kwargs)

    def __bool__(self) -> bool:
        return bool(self.under)  # true for any request: HTTP/1.1 has a Host

    def __iter__(self) -> Iterator[str]:
        self.note(EVERYTHING)
        return iter(self.under)

    def __len__(self) -> int:
        self.note(EVERYTHING)
        return len(self.under)

    def __eq__(self, other: object) -> bool:
        self.note(EVERYTHING)
        return bool(self.under == (other.under if type(other) is RecordedHeaders else other))

    __hash__: None = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        self.note(EVERYTHING)
        return repr(self.under)

    def __reduce_ex__(self, protocol: Any) -> Any:
        self.note(EVERYTHING)
        return self.under.__reduce_ex__(protocol)

    def __getattr__(self, name: str) -> Any:
        if name in RecordedHeaders.__slots__:
            # What is seldom needed is not set for every run (m: 0.02 us each).
            return _NOT_SET[name]
        # keys, values, items, copy, to_dict, and whatever else there may be one day.
        self.note(EVERYTHING)
        return getattr(self.under, name)


_NOT_SET: Final = {
    "is_odd": False,
    "key_value": None,
    "late": None,
    "looked_up": _aiohttp.USUALLY_LOOKED_UP,
    "peername": None,
    "task": None,
}

MultiMapping.register(RecordedHeaders)


class RecordedState(MutableMapping[Hashable, Any]):
    """The request mapping's storage that notes which items are looked at, set and deleted."""

    __slots__ = ("headers", "under")

    headers: RecordedHeaders
    under: Any

    def __getitem__(self, key: Hashable) -> Any:
        value = self.under.get(key, MISSING)
        noted = self.headers.taking_notes().items
        if key not in noted:
            noted[key] = (value, frozen(value, self.headers.request))
        if value is MISSING:
            raise KeyError(key)
        return value

    def get(self, key: Hashable, default: Any = None) -> Any:
        try:
            return self[key]
        except KeyError:
            return default

    def __setitem__(self, key: Hashable, value: Any) -> None:
        self._note_write(key)
        self.under[key] = value

    def __delitem__(self, key: Hashable) -> None:
        self._note_write(key)
        del self.under[key]

    def __iter__(self) -> Iterator[Hashable]:
        self._note_all()
        return iter(self.under)

    def __len__(self) -> int:
        self._note_all()
        return len(self.under)

    def copy(self) -> dict[Hashable, Any]:
        """What `request.clone()` asks for: nobody sees any more what is looked at, so all of it is."""
        self.headers.note(EVERYTHING)
        self.headers.note(REMOTE)
        self._note_all()
        # Nor what is prepared with the clone.
        run = self.headers
        run.route.is_first = False  # the clone may come to the same door again, with whatever it was given
        run.met()
        _aiohttp.before_any_head(run.request, lambda: run.prepares(None))
        plain: dict[Hashable, Any] = self.under.copy()
        return plain

    def _note_all(self) -> None:
        for key in (*self.under, ALL_ITEMS):
            self.get(key)

    def _note_write(self, key: Hashable) -> None:
        self.headers.taking_notes().written[key] = None


class _AllItems:
    """Stands among the items that were looked at where all were: there must be no others."""

    def __repr__(self) -> str:
        return "(all)"


ALL_ITEMS: Final = _AllItems()


class Reads:
    """What a handler had looked at when it ended, of what the identity does not hold.

    `names` are header names in lower case, with `EVERYTHING` and `REMOTE`, all of them; `compared` those of
    them in which a follower may differ. `written` is the item that the handler set or deleted, if any, `changed`
    are those that it changed in place: those who have the same object are not concerned.
    `attributes` are those that somebody gave the request object: nobody can tell whether they were looked at.
    """

    __slots__ = ("attributes", "changed", "compared", "ignore_state", "items", "names", "selection", "written")

    def __init__(
        self,
        notes: Notes,
        leader: web.Request,
        attributes: dict[str, Any],
        selection: Selection,
        ignore_state: frozenset[Hashable],
    ) -> None:
        names = {name.lower() for name in notes.names}
        self.names: frozenset[str] = frozenset(name for name in names if name not in TRACING)
        self.compared: tuple[str, ...] = tuple(sorted(name for name in self.names if not selection.holds_all_of(name)))
        self.selection: Selection = selection
        self.ignore_state: frozenset[Hashable] = ignore_state
        self.attributes: dict[str, tuple[Any, Any]] = {
            name: (value, frozen(value, leader)) for name, value in attributes.items()
        }
        self.items: dict[Hashable, tuple[Any, Any]] = {
            key: item for key, item in notes.items.items() if key not in ignore_state
        }
        self.written: str | None = None
        for key in notes.written:
            if key not in ignore_state:
                self.written = _aiohttp.item_name(key)
                break
        self.changed: list[Hashable] = [key for key, (value, was) in self.items.items() if frozen(value, leader) != was]

    @property
    def compares(self) -> bool:
        """Whether there is anything in which a follower may differ."""
        return bool(self.compared or self.items or self.attributes)

    def refuses(
        self, leader: web.Request, follower: web.Request, mapping: Mapping[Any, Any]
    ) -> tuple[Unshared, str | None] | None:
        """In what a follower with this request mapping differs from the leader, if in anything that counts."""
        for name in self.compared:
            if name == REMOTE:
                if _aiohttp.remote_of(leader) != _aiohttp.remote_of(follower):
                    return Unshared.REMOTE, None
            elif name == EVERYTHING:
                different = self.selection.difference(leader, follower)
                if different is not None:
                    return Unshared.HEADER, different
            elif not same_lines(name, leader, follower):
                return Unshared.HEADER, name
        for key in self.changed:
            if mapping.get(key, MISSING) is not self.items[key][0]:
                return Unshared.STATE_WRITTEN, _aiohttp.item_name(key)
        key = _difference(self.items, mapping, leader, follower)
        if key is None and ALL_ITEMS in self.items:
            key = next(iter(mapping.keys() - self.items.keys() - self.ignore_state), None)
        if key is None and self.attributes:
            key = _difference(self.attributes, _aiohttp.own_attributes(follower), leader, follower)
        return None if key is None else (Unshared.STATE, _aiohttp.item_name(key))

    def to_learn(self, reason: Unshared, name: str | None) -> tuple[list[str], list[Hashable]]:
        """The headers and the items that should be in the identity, as a follower was refused for this reason.

        All the headers, as there may be more in which it differs; but `request.remote` and items only where they
        are the reason: what an item is at arrival may differ in more than in what its type calls equal.
        """
        if reason is Unshared.STREAM:
            return [], []
        if reason is Unshared.STATE:
            return [], [key for key in self.items if key is not ALL_ITEMS and _aiohttp.item_name(key) == name]
        return [header for header in self.compared if header != REMOTE or reason is Unshared.REMOTE], []

    def pass_on(self, request: web.Request) -> None:
        """Note on the request of a follower what was looked at for it, at each door further out where it leads."""
        headers, state = _aiohttp.lent(request)
        if type(headers) is not RecordedHeaders:
            return
        doors: list[tuple[RecordedHeaders, Notes]] = []
        while type(headers) is RecordedHeaders:
            doors.append((headers, headers.taking_notes()))
            # Whichever task this is: it may be one whose own looks do not count.
            headers.notes = headers.kept_notes
            headers = headers.under
        try:
            for door, _ in doors:
                for name in self.names:
                    door.note(name)
            for key in self.items:
                if key is ALL_ITEMS:
                    len(state)
                else:
                    state.get(key)
        finally:
            for door, notes in doors:
                door.notes = notes


def _difference(
    items: Mapping[Any, tuple[Any, Any]], others: Mapping[Any, Any], leader: web.Request, follower: web.Request
) -> Any:
    """The first of the leader's items that is another one among the follower's; None if there is none."""
    for key, (value, was) in items.items():
        other = others.get(key, MISSING)
        if other is not value and not is_same(was, value, leader, other, follower):
            return key
    return None


def same_lines(name: str, one: web.BaseRequest, other: web.BaseRequest) -> bool:
    """Whether two requests agree in all lines of a header."""
    mine, others = _aiohttp.received_headers(one), _aiohttp.received_headers(other)
    return bool(mine.getall(name, ()) == others.getall(name, ()))
