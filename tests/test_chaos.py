"""Chaos over real sockets, in short: nobody is left waiting, no body is wrong, and nothing is left behind."""

from tests.chaos import chaos


async def test_whatever_clients_and_handlers_do_each_request_ends_as_it_should() -> None:
    report = await chaos(7.5, seed=7)
    assert report.problems() == []
