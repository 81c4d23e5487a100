"""Dialling: from a session's settings to an open stream, however long the service takes.

Only so many sessions of a worker dial at the same time; the others wait in the order they came.
"""

import logging
import time

import anyio

from worker.core.faults import Backoff
from worker.errors import SttBusy, SttCredentials, SttPermanent, SttTransient
from worker.host import Host
from worker.logs import SessionName
from worker.spans import SessionTrace
from worker.stt.cartesia import Stream, StreamSettings, open_stream

log = logging.getLogger(__name__)

CREDENTIALS_RETRY_S = 15.0
"""Ceiling of the wait between connects while the service refuses the key."""


async def dial(
    host: Host,
    session: SessionName,
    settings: StreamSettings,
    trace: SessionTrace,
    backoff: Backoff,
) -> Stream:
    """Return an open stream, waiting as the refusals ask for.

    Raises `SttPermanent` if the service will never take these settings.
    """
    slow = Backoff(first_s=1.0, ceiling_s=CREDENTIALS_RETRY_S)
    while True:
        try:
            async with host.connects:
                began = time.monotonic()
                with trace.connecting(settings.model) as span:
                    stream = await open_stream(host.service, settings)
                    span.set_attribute("gen_ai.response.id", stream.request_id)
        except SttPermanent as error:
            host.stats.connects[error.fault_class] += 1
            raise
        except SttCredentials as error:
            host.stats.connects[error.fault_class] += 1
            if settings.model == host.model:
                host.credentials.refused(error)
            else:  # what the plan says of another model is not said of ours
                log.warning("%s: model %s: %s", session, settings.model, error)
            wait = slow.next_s()
        except (SttBusy, SttTransient) as error:
            host.stats.connects[error.fault_class] += 1
            log.log(logging.DEBUG if backoff.failures else logging.INFO, "%s: %s", session, error)
            host.outage.failed(session, error, time.monotonic())
            wait = backoff.next_s()
        else:
            host.credentials.accepted()
            host.outage.ended(time.monotonic())
            host.stats.connects["ok"] += 1
            host.stats.connect_s.observe(time.monotonic() - began)
            return stream
        await anyio.sleep(wait)
