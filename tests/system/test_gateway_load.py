"""The load run of the gateway, in a short form: no frame is lost, repeated or misplaced."""

from tests.bench.gateway_load import measure, report


async def test_load_run_finds_every_frame() -> None:
    result = await measure(20, 3.0, clients=2)
    assert result.is_correct, report(result)
    assert result.frames == 20 * 150
    assert result.entries >= 20 * 30
