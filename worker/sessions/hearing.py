"""What is heard of the service about one session: told to consumers, and what it covers settled.

The turn tracker decides what consumers are told; the seam finds the audio that it covers, and the
ledger commits to that.
"""

from typing import NamedTuple

import msgspec

from schemas import cartesia
from worker.core.holdback import Holdback
from worker.core.ledger import Ledger
from worker.core.sent import Moment
from worker.core.turns import Draft, EndReason, Input, TurnTracker
from worker.core.wording import is_blank, parting
from worker.sessions.narrator import Narrator
from worker.sessions.seam import BURST_S, Seam
from worker.sessions.uplink import Uplink

HEARD_MARGIN_MS = 1_500
"""Audio before an answered ping that may still belong to a turn whose start is on its way: the
service's lag and the onset it needs."""

_INPUTS: dict[type, Input] = {
    cartesia.TurnUpdate: Input.UPDATE,
    cartesia.TurnEagerEnd: Input.EAGER_END,
}

TurnMessage = (
    cartesia.TurnStart
    | cartesia.TurnUpdate
    | cartesia.TurnEagerEnd
    | cartesia.TurnResume
    | cartesia.TurnEnd
)


class _HeldEnd(NamedTuple):
    """A turn's end whose next message is to tell what it covers.

    During a flush it covers all that was sent, unless another turn follows. And of what came
    together, as after a standstill, an end is easier to place if it is known that a turn follows.
    """

    transcript: str
    arrival: Moment


class _HeldUpdate(NamedTuple):
    """The newest text of the open turn, which is not published yet."""

    transcript: str
    arrival: Moment


class _Lull(NamedTuple):
    """A pause inside the turn, in which the service thought that it might be over."""

    transcript: str
    """What had been said of the turn by then."""
    arrival: Moment
    worded: int
    """Byte of the socket that was sent when that was said first."""


class _Quiet(NamedTuple):
    """Audio before a turn's first sound."""

    position: int
    """Session byte up to which that is."""
    arrived_at: float
    """When the `turn.start` did."""


class Hearing:
    """Takes what the service says on one socket after another."""

    def __init__(
        self,
        tracker: TurnTracker,
        seam: Seam,
        ledger: Ledger,
        uplink: Uplink,
        narrator: Narrator,
        holdback: Holdback,
    ) -> None:
        self._tracker = tracker
        self._seam = seam
        self._ledger = ledger
        self._uplink = uplink
        self._narrator = narrator
        self._holdback = holdback
        self._held_update: _HeldUpdate | None = None
        self._now = 0.0  # when a message or a tick came last
        self._held_end: _HeldEnd | None = None
        self._lull: _Lull | None = None
        self._quiet: _Quiet | None = None
        self._said = ""  # of the turn on this socket, last
        self.flushing = False
        """Whether the service was asked for the rest of what was sent."""

    @property
    def inside_turn(self) -> bool:
        """Whether a turn is open, for consumers or for the service."""
        return self._tracker.open or self._tracker.heard

    def socket_opened(self, now: float) -> None:
        """Begin on a new socket."""
        self.flushing = False
        self._said = ""
        self._tracker.socket_opened()
        self._seam.reset(now)

    def forget(self) -> None:
        """Drop what waited for more to be said on a socket that is gone."""
        self._held_update = None
        self._held_end = None
        self._lull = None
        self._quiet = None

    def take(self, message: TurnMessage, arrival: Moment) -> None:
        """Act upon a message that arrived then."""
        self._now = arrival.at
        match message:
            case cartesia.TurnStart():
                self.publish_text()
                self._said = ""
                again = self._tracker.open
                self._hear(Input.START, None, arrival)
                quiet_before = self._seam.turn_started(arrival)
                # Audio that a replay hears of an open turn may belong to it.
                if not again and self._seam.prompt:
                    self._quiet = _Quiet(quiet_before, arrival.at)
            case cartesia.TurnEnd():
                self._lull = None
                self._take_end(self._text_of(message), arrival)
            case cartesia.TurnResume():
                self.publish_text()
                self._hear(Input.RESUME, None, arrival)
                if self._tracker.heard:
                    self._seam.turn_resumed(arrival)
            case _:
                text = self._text_of(message)
                if isinstance(message, cartesia.TurnUpdate) and self._waits():
                    self._hold(text, arrival)
                else:
                    self._supersede(text)
                    self._hear(_INPUTS[type(message)], text, arrival)
                if self._tracker.heard:
                    self._seam.turn_worded(text, arrival)
                    self._settle_lull(text)
                if isinstance(message, cartesia.TurnEagerEnd) and self._tracker.heard:
                    lull = _Lull(self._tracker.whole(text), arrival, self._seam.worded)
                    self._lull = lull if self._seam.prompt else None

    def heard_anything(self, arrival: Moment, waiting: int, *, begins: bool) -> None:
        """Note that a message of any kind arrived then, before it is taken.

        `waiting` messages came with it, and are to be taken after it; `begins` is whether it says
        that a turn begins.
        """
        self.release_end(final=False, begins=begins)
        self._seam.heard(arrival, waiting)
        # What came together with the next message may have been held up, and is no guide.
        quiet, self._quiet = self._quiet, None
        if quiet is not None and arrival.at - quiet.arrived_at >= BURST_S:
            self._settle(quiet.position)
        if self._lull is not None and arrival.at - self._lull.arrival.at < BURST_S:
            self._lull = None

    def release_update(self, now: float) -> None:
        """Publish text that was held back, if its interval is over."""
        if self._held_update is not None and self._holdback.is_due(now):
            self._now = now
            self.publish_text()

    def publish_text(self) -> None:
        """Publish text that was held back, if any."""
        held, self._held_update = self._held_update, None
        if held is not None:
            self._hear(Input.UPDATE, held.transcript, held.arrival)

    def release_end(self, *, final: bool, begins: bool = False) -> None:
        """Publish a turn's end that was held, now that it is known what it covers."""
        if self._held_end is None:
            return
        held, self._held_end = self._held_end, None
        if final:
            cut, spoken_until = self._uplink.fed, None
        else:
            cut, spoken_until = self._seam.cut(held.arrival, begins), self._seam.spoken_until
        self._supersede(held.transcript)
        drafts = self._tracker.hear(Input.END, held.transcript, held.arrival.fed)
        self._cover(cut, drafts, "close" if self.flushing else "model", spoken_until)

    def conclude(self, reason: EndReason) -> None:
        """Settle all that was sent, ending the open turn if the service did not."""
        self.publish_text()
        self._cover(self._uplink.fed, self._tracker.conclude(reason), reason)

    def break_off(self) -> None:
        """End the open turn, if any: what follows of its audio will not be transcribed."""
        self.publish_text()
        self._publish(self._tracker.conclude("watchdog"))

    def settle_silence(self, heard: int) -> None:
        """Commit audio between turns, heard up to that session byte and found empty."""
        if not self.inside_turn:
            self._settle(heard - self._uplink.bytes_of(HEARD_MARGIN_MS))

    def _text_of(
        self, message: cartesia.TurnUpdate | cartesia.TurnEagerEnd | cartesia.TurnEnd
    ) -> str:
        """Return the turn's text; where a message leaves it out, it is as before."""
        if message.transcript is not None:
            self._said = message.transcript
        return self._said

    def _hear(self, said: Input, text: str | None, arrival: Moment) -> None:
        self._publish(self._tracker.hear(said, text, arrival.fed))

    def _publish(self, drafts: list[Draft], spoken_until: float | None = None) -> None:
        for draft in drafts:
            if draft.kind == "turn.start":
                self._holdback.reset()
            elif draft.transcript is not None:
                self._holdback.published(draft.transcript, self._now)
        self._narrator.tell(drafts, spoken_until)

    def _waits(self) -> bool:
        """Whether an update is held back: the text was published a short time ago."""
        return self._tracker.grows and not self._holdback.is_due(self._now)

    def _hold(self, text: str, arrival: Moment) -> None:
        """Hold an update back, unless one with more text is."""
        held = self._held_update
        if held is None or len(text) >= len(held.transcript):
            self._held_update = _HeldUpdate(text, arrival)

    def _supersede(self, text: str) -> None:
        """Publish text that was held back, unless `text`, which is published next, has it all."""
        if self._held_update is not None and text.startswith(self._held_update.transcript):
            self._held_update = None
        self.publish_text()

    def _take_end(self, text: str, arrival: Moment) -> None:
        if not self._tracker.will_end(text, arrival.fed):
            self.publish_text()
            self._hear(Input.END, text, arrival)
            return
        self._seam.turn_worded(text, arrival)
        self._held_end = _HeldEnd(text, arrival)
        if not self.flushing and not self._seam.waiting:
            self.release_end(final=False)

    def _settle_lull(self, text: str) -> None:
        """Commit up to a pause inside the turn, now that words have come after it.

        A long turn would else be heard again from its first word after every lost socket.
        """
        lull = self._lull
        if lull is None:
            return
        whole = self._tracker.whole(text)
        begins = whole.startswith(lull.transcript)
        if is_blank(whole[len(lull.transcript) :]):
            return  # nothing came yet
        self._lull = None
        space = parting(lull.transcript, whole) if begins else None
        if space is None:
            return  # what was said before the pause was not the last word on it
        position = self._seam.pause(lull.arrival, lull.worded)
        if position is not None and self._ledger.commit_to(position):
            self.publish_text()  # what is settled is not heard again
            self._tracker.settle(lull.transcript, space)
            self._settled()

    def _settle(self, position: int) -> None:
        """Commit audio that nothing was or will be said of."""
        if self._ledger.commit_to(position):
            self._settled()

    def _settled(self) -> None:
        self._uplink.committed()
        self._narrator.publisher.touch()

    def _cover(
        self,
        position: int,
        drafts: list[Draft],
        reason: EndReason,
        spoken_until: float | None = None,
    ) -> None:
        if self._ledger.commit_to(position):
            self._uplink.committed()
        drafts = [msgspec.structs.replace(draft, reason=reason) for draft in drafts]
        self._publish(drafts, spoken_until)
        self._narrator.publisher.touch()
