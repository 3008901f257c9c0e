"""Secrets: who looks at what is told a word that only the very same look gives, and is known by sight."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

USERS = 50
NOBODY = "-"

_SECRET = re.compile(r"~[0-9a-f]{16}~")


def secret(*seen: str) -> str:
    """The word for a value, as it was seen by one look of one handler in one application."""
    return f"~{hashlib.sha1(repr(seen).encode()).hexdigest()[:16]}~"


def number(words: Iterable[str]) -> int:
    """A number that depends on all of the words."""
    return int(hashlib.sha1("".join(words).encode()).hexdigest()[:8], 16)


def found_in(text: str) -> set[str]:
    """All secrets in a text."""
    return set(_SECRET.findall(text))


@dataclass
class Findings:
    """What a hunt came to. `foreign` are secrets that were handed to somebody else, and how to see each again."""

    requests: int = 0
    considered: int = 0
    reduced: int = 0
    whole: int = 0
    broken: int = 0
    given_up: int = 0
    takeovers: int = 0
    foreign: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    hung: list[str] = field(default_factory=list)
    unshared: dict[str, int] = field(default_factory=dict)

    def add_figures(self, stats: dict[str, object]) -> None:
        """Count what a middleware object did."""
        for name in ("considered", "reduced", "takeovers"):
            figure = stats["total" if name == "considered" else name]
            setattr(self, name, getattr(self, name) + figure)
        reasons: dict[str, int] = stats["unshared"]  # type: ignore[assignment]
        for reason, times in reasons.items():
            kind = reason.split(":")[0]
            self.unshared[kind] = self.unshared.get(kind, 0) + times

    def add(self, other: "Findings") -> None:
        """Count what another hunt came to as well."""
        for name in ("requests", "considered", "reduced", "whole", "broken", "given_up", "takeovers"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.foreign += other.foreign
        self.wrong += other.wrong
        self.hung += other.hung
        for reason, times in other.unshared.items():
            self.unshared[reason] = self.unshared.get(reason, 0) + times

    def __str__(self) -> str:
        share = self.reduced / max(1, self.requests)
        return (
            f"{self.requests} requests ({self.whole} whole answers, {self.broken} broken off, {self.given_up} given "
            f"up), {self.considered} passes of a door, {self.reduced} reduced ({share:.0%}"
            f" of the requests), {self.takeovers} takeovers, unshared {dict(sorted(self.unshared.items()))}: "
            f"{len(self.foreign)} foreign secrets, {len(self.wrong)} wrong answers, {len(self.hung)} hung"
        )
