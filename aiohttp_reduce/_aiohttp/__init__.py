"""Every private name of aiohttp that this package touches, each with why and since when.

Read in aiohttp 3.12.15 and 3.14.5. Nothing else in the package names them; `tests/test_aiohttp_internals.py`
fails where one of them goes or changes its meaning.
"""

from .lending import (
    kept_names,
    lend,
    lent,
    mapping_of,
    take_back,
)
from .requests import (
    UNROUTED,
    at_the_door,
    before_answer,
    can_answer,
    client_certificate,
    connection_is_open,
    host_of,
    is_shutting_down,
    own_attributes,
    received_headers,
    received_pairs,
    remote_of,
    route_of,
    same_head,
)
from .responses import (
    class_sends_its_body_itself,
    compressed,
    compresses_whole_body,
    containers_in,
    copied_jar,
    fields_of_any_sending,
    own,
    rebuild,
    repeatable_body,
    response_state,
    sends_its_body_itself,
    sets_cookies,
    take_compressed_from,
)

__all__ = [
    "UNROUTED",
    "at_the_door",
    "before_answer",
    "can_answer",
    "class_sends_its_body_itself",
    "client_certificate",
    "compressed",
    "compresses_whole_body",
    "connection_is_open",
    "containers_in",
    "copied_jar",
    "fields_of_any_sending",
    "host_of",
    "is_shutting_down",
    "kept_names",
    "lend",
    "lent",
    "mapping_of",
    "own",
    "own_attributes",
    "rebuild",
    "received_headers",
    "received_pairs",
    "remote_of",
    "repeatable_body",
    "response_state",
    "route_of",
    "same_head",
    "sends_its_body_itself",
    "sets_cookies",
    "take_back",
    "take_compressed_from",
]
