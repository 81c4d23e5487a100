"""Claims an entry as a worker does."""

from schemas.audio import decode_session
from schemas.turns import SessionStarted
from worker.bus.ownership import ClaimResult, OwnedEntry, SessionLeases


async def claim(intake: SessionLeases, owned: OwnedEntry) -> ClaimResult:
    """Claim an entry for the consumer of `intake`."""
    session = decode_session(owned.fields)
    started = SessionStarted(
        session=session.session,
        run=owned.entry_id,
        seq=1,
        at=0.0,
        audio_ms=0,
        provider="cartesia",
        request_id="",
        connection=0,
        worker=intake.consumer,
        metadata=session.metadata,
        encoding=session.encoding,
        sample_rate=session.sample_rate,
    )
    return await intake.claim(owned, session, started, b"{}", intake.nonce)
