"""Bad input: no growth of memory that stays, and no answer that is not aiohttp's own."""

import pytest

from tests.growth import growth


@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_bad_input_leaves_no_memory_behind(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL", logger="aiohttp.server")
    left = await growth(1.0)
    caplog.clear()
    assert left.sent > 30
    # What stays is the memory of 4,096 header names at most.
    assert left.kept_by_us < 1024
    assert left.live_requests < 10
