"""Flights found by target first, by identity only when two of them meet: what nobody meets costs no identity."""

from asyncio import AbstractEventLoop
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from .async_reduce_core import Flight, FlightTable

T = TypeVar("T")


class TargetTable(FlightTable[T]):
    """The first flight on a target stands under that target, those of other identities under their full identity.

    So a lookup is never a scan. `crowds` says how many stand under their identity, by target, and of which targets it
    has to be known for another reason that there is more than what stands under them (`crowd`).
    """

    __slots__ = ("crowds",)

    def __init__(self, loop: AbstractEventLoop, clock: Callable[[], float]) -> None:
        super().__init__(loop, clock)
        self.crowds: dict[Hashable, int] = {}

    def place(
        self, target: Hashable, instead_of: Flight[T] | None, identity: Callable[[], Hashable]
    ) -> tuple[Hashable, Hashable]:
        """Where a new flight is to stand: its key, and the target that it crowds (None if it is the first there).

        `instead_of` is the flight of the same identity that is there, and does not admit any more.
        """
        if self.flights.get(target) is instead_of:
            return target, None
        key = identity()
        if key not in self.flights:
            self.crowd(target)
        return key, target

    def crowd(self, target: Hashable) -> None:
        """There is more to this target than what stands under it; until as many calls of `uncrowd`."""
        self.crowds[target] = self.crowds.get(target, 0) + 1

    def uncrowd(self, target: Hashable) -> None:
        """There is less again."""
        self.crowds[target] -= 1
        if not self.crowds[target]:
            del self.crowds[target]

    def remove(self, flight: Flight[Any]) -> None:
        key = flight.key
        if self.flights.get(key) is flight:
            del self.flights[key]
            if self.crowds and (target := getattr(flight, "crowds_target", None)) is not None:
                self.uncrowd(target)
