"""Sessions that hold audio back are called until they hold none."""

from dataclasses import dataclass, field

import anyio
import pytest

from worker.session.backlog import BacklogDrainer
from worker.telemetry.logs import SessionName


@dataclass(eq=False)
class Holder:
    """Holds so many items, and releases one with each call."""

    holds: int
    breaks: bool = False
    calls: int = 0
    name: SessionName = SessionName("s", None)
    over: anyio.Event = field(default_factory=anyio.Event)

    @property
    def catching_up(self) -> bool:
        return self.holds > 0

    def drain(self, now: float) -> None:
        assert now > 0
        self.calls += 1
        if self.breaks:
            raise ValueError("broken session")
        self.holds -= 1
        if not self.holds:
            self.over.set()

    def fail(self) -> None:
        self.over.set()


async def test_backlog_is_called_until_nothing_is_held(caplog: pytest.LogCaptureFixture) -> None:
    catch_up = BacklogDrainer()
    some, more, broken = Holder(2), Holder(5), Holder(3, breaks=True)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(catch_up.run)
        for holder in (some, more, broken, some):
            catch_up.add(holder)
        with anyio.fail_after(30):
            for holder in (some, more, broken):
                await holder.over.wait()
        late = Holder(1)
        catch_up.add(late)
        with anyio.fail_after(30):
            await late.over.wait()
        tasks.cancel_scope.cancel()
    (record,) = caplog.records
    assert (record.args, bool(record.exc_info)) == ((broken.name,), True)
    assert (some.calls, more.calls, broken.calls, late.calls) == (2, 5, 1, 1)
