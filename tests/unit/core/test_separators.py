"""Published text keeps the provider's own separators, whatever they are."""

import msgspec
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from worker.core.records import EventDraft, OpenTurn, TurnState
from worker.core.transcripts import join, parting, says_more
from worker.core.turn_tracker import ProviderInput, TurnTracker


class Style(msgspec.Struct, frozen=True):
    """How a provider joins words."""

    lead: str = ""
    """Separator before the first word of a socket's first turn."""
    later: str = ""
    """Separator before the first word of a later turn."""
    between: str = " "
    after: str = ""
    """Separator after the last word so far."""
    end: str = ""
    """Separator after the last word of a turn that ended."""
    words: str = "latin"

    def word(self, number: int, wording: int = 0) -> str:
        """Write a word in one of three wordings."""
        if self.words == "cjk":
            return chr(0x4E00 + 3 * number + wording)
        return ("w{}", "w{}~", "{}")[wording].format(1_000 + number)

    def text(self, words: list[str], *, first: bool, over: bool = False) -> str:
        """Write a turn's words."""
        if not words:
            return ""
        begin = self.lead if first else self.later
        return begin + self.between.join(words) + (self.end if over else self.after)

    def numbers(self, text: str) -> list[int]:
        """Read the words back."""
        if self.words == "cjk":
            return [(ord(char) - 0x4E00) // 3 for char in text if not char.isspace()]
        return [int(word.strip("w~\u200b")) - 1_000 for word in text.replace("\u200b", " ").split()]


STYLES = {
    "between": Style(),
    "leading in later turns": Style(later=" "),
    "leading": Style(lead=" ", later=" "),
    "trailing": Style(after=" ", end=" "),
    "trailing until the end": Style(after=" "),
    "trailing at the end": Style(end=" "),
    "leading and trailing": Style(lead="  ", later=" ", after=" \n", end="\n"),
    "double": Style(between="  ", after="  ", end="  "),
    "lines": Style(between="\n", end="\n"),
    "carriage returns": Style(between="\r\n", later="\r\n"),
    "tabs": Style(between="\t", after="\t", end="\t"),
    "no-break": Style(between="\u00a0", after="\u00a0", end="\u00a0"),
    "zero width": Style(between="\u200b", after="\u200b", end="\u200b"),
    "Chinese": Style(between="", words="cjk"),
    "Chinese with spaces at the ends": Style(
        between="", lead=" ", later=" ", after="\u3000", end=" ", words="cjk"
    ),
    "none": Style(between=""),
}
SPACED = {name: style for name, style in STYLES.items() if name != "none"}


class Loss(msgspec.Struct, frozen=True):
    """A lost socket."""

    after: int
    """Messages received after the last one."""
    settled: float
    """Share of the words so far, up to the last but one, that is committed before."""
    new_owner: bool
    lag: int


LOSSES = st.lists(
    st.builds(
        Loss,
        after=st.integers(0, 12),
        settled=st.floats(0, 1),
        new_owner=st.booleans(),
        lag=st.integers(-3, 3),
    ),
    max_size=4,
)


class Play:
    """Plays one turn of a provider to a tracker, and collects what consumers read."""

    def __init__(self, style: Style, words: int, *, first: bool, eager_at: set[int]) -> None:
        self.style = style
        self.words = words
        self.first = first
        self.eager_at = eager_at
        self.tracker = TurnTracker(jitter=5)
        self.drafts: list[EventDraft] = []
        self.settled = 0

    def messages(
        self, *, first: bool, wording: list[int]
    ) -> list[tuple[ProviderInput, str | None, int]]:
        """Return the messages of a socket that begins after the committed words."""
        inputs: list[tuple[ProviderInput, str | None, int]] = []
        at = self.settled
        inputs.append((ProviderInput.START, None, 10 * at + 5))
        for count in range(at + 1, self.words + 1):
            words = [self.style.word(nth, wording[nth]) for nth in range(at, count)]
            text = self.style.text(words, first=first)
            inputs.append((ProviderInput.UPDATE, text, 10 * count))
            if count in self.eager_at:
                inputs.append((ProviderInput.EAGER_END, text, 10 * count + 4))
                inputs.append((ProviderInput.RESUME, None, 10 * count + 5))
        text = self.style.text(words, first=first, over=True)
        inputs.append((ProviderInput.END, text, 10 * self.words + 6))
        return inputs

    def run(self, losses: list[Loss], wordings: list[list[int]]) -> list[EventDraft]:
        """Play the turn, losing sockets."""
        pending = [*losses]
        messages = self.messages(first=self.first, wording=wordings[0])
        at = lag = 0
        left = pending[0].after if pending else -1
        seen = ""
        while at < len(messages):
            if left == 0 and self.drafts and self.tracker.open:
                loss = pending.pop(0)
                self.lose(loss, messages[:at])
                lag = loss.lag
                wording = wordings[(len(losses) - len(pending)) % len(wordings)]
                messages, at = self.messages(first=True, wording=wording), 0
                left = pending[0].after if pending else -1
                continue
            left -= 1
            kind, text, position = messages[at]
            at += 1
            for draft in self.tracker.on_input(kind, text, max(0, position + lag)):
                self.drafts.append(draft)
                if draft.transcript is not None:
                    assert len(draft.transcript) >= len(seen), "text shrank"
                    if draft.kind == "turn.update":
                        assert says_more(draft.transcript, seen), "white space is no news"
                    seen = draft.transcript
        return self.drafts

    def lose(self, loss: Loss, inputs: list[tuple[ProviderInput, str | None, int]]) -> None:
        """Commit what a pause allows, and open another socket."""
        updates = [text for kind, text, _ in inputs if kind is ProviderInput.UPDATE and text]
        share = round(loss.settled * (len(updates) - 1))
        if share > 0:
            before = self.tracker.full_transcript(updates[share - 1])
            whole = self.tracker.full_transcript(updates[-1])
            if whole.startswith(before):
                between = parting(before, whole)
                if between is not None:
                    self.tracker.commit_prefix(before, between)
                    self.settled += share
        if loss.new_owner:
            encoded = msgspec.json.encode(self.tracker.state)
            self.tracker = TurnTracker(msgspec.json.decode(encoded, type=TurnState), jitter=5)
        self.tracker.socket_opened()


@given(
    style=st.sampled_from(list(STYLES.values())),
    words=st.integers(1, 14),
    first=st.booleans(),
    eager_at=st.sets(st.integers(1, 14)),
    losses=LOSSES,
)
def test_replay_with_same_wording_matches_single_socket(
    style: Style, words: int, first: bool, eager_at: set[int], losses: list[Loss]
) -> None:
    alike = [[0] * words]
    calm = Play(style, words, first=first, eager_at=eager_at).run([], alike)
    play = Play(style, words, first=first, eager_at=eager_at)
    drafts = play.run(losses, alike)
    event(f"settled: {play.settled > 0}")
    whole = calm[-1].transcript or ""
    assert calm[-1].transcript == style.text(
        [style.word(nth) for nth in range(words)], first=first, over=True
    ) or len(style.end) < len(style.after), "one socket's text is the provider's"
    # A turn without any published word begins as its new socket does.
    blind = any(loss.after <= 1 for loss in losses[:1])
    if blind:
        assert (drafts[-1].transcript or "").strip() == whole.strip()
        return
    assert drafts[-1].transcript == whole
    for draft in drafts:
        if draft.kind == "turn.update":
            assert whole.startswith((draft.transcript or "").rstrip("\u200b \t\r\n\u00a0\u3000"))


@given(
    style=st.sampled_from(list(SPACED.values())),
    words=st.integers(1, 14),
    first=st.booleans(),
    eager_at=st.sets(st.integers(1, 14)),
    losses=LOSSES,
    data=st.data(),
)
def test_replay_with_other_wording_has_each_word_once(
    style: Style,
    words: int,
    first: bool,
    eager_at: set[int],
    losses: list[Loss],
    data: st.DataObject,
) -> None:
    wording = st.lists(st.integers(0, 2), min_size=words, max_size=words)
    wordings = [data.draw(wording) for _ in range(len(losses) + 1)]
    drafts = Play(style, words, first=first, eager_at=eager_at).run(losses, wordings)
    assert style.numbers(drafts[-1].transcript or "") == [*range(words)]


@pytest.mark.parametrize(
    ("before", "whole", "between"),
    [
        ("one", "one two", " "),
        ("one ", "one two ", ""),
        ("one ", "one  two", " "),
        ("one", "one\r\ntwo", "\r\n"),
        ("one", "one\u00a0two", "\u00a0"),
        ("one", "one, two", ", "),
        ("one", "one. Two", ". "),
        ("one", 'one" two', '" '),
        ("one", 'one "two"', " "),
        ("one ", 'one "two"', ""),
        ("今日は", "今日はいい", ""),
        ("今日は", "今日は、いい", "、"),
        ("今日は", "今日は「いい", ""),
        ("今日は", "今日はOK", ""),
        ("OK", "OK今日", ""),
        ("one", "one", None),
        ("one", "one  ", None),
        ("one", "one.", None),
        ("two", "twos three", None),
        ("don", "don't", None),
        ("w1", "w1w2", None),
        ("안녕", "안녕 하세요", " "),
        ("안녕", "안녕하세요", None),
    ],
)
def test_separator_is_split_from_text(before: str, whole: str, between: str | None) -> None:
    assert parting(before, whole) == between


@pytest.mark.parametrize(
    ("before", "after", "whole"),
    [
        ("one\ntwo", "three", "one\ntwo\nthree"),
        ("one\u00a0two", "three", "one\u00a0two\u00a0three"),
        ("one ", " two", "one two"),
        ("one\t", "two", "one\ttwo"),
        ("안녕", "하세요", "안녕 하세요"),
        ("ขอบคุณ", "ครับ", "ขอบคุณครับ"),
    ],
)
def test_join_repeats_previous_separator(before: str, after: str, whole: str) -> None:
    assert join(before, after) == whole


SPACE_ONLY = [" ", "\n", "\t", "\u00a0", "\u3000", "\u200b", " \r\n "]


@pytest.mark.parametrize("space", SPACE_ONLY)
def test_white_space_alone_is_not_published(space: str) -> None:
    tracker = TurnTracker()
    tracker.on_input(ProviderInput.START, None, 1)
    assert tracker.on_input(ProviderInput.UPDATE, space, 2) == []
    assert tracker.on_input(ProviderInput.UPDATE, f"one{space}", 3)[0].transcript == f"one{space}"
    assert tracker.on_input(ProviderInput.UPDATE, f"one{space}{space}", 4) == []
    tracker.on_input(ProviderInput.EAGER_END, f"one{space}", 5)
    assert tracker.on_input(ProviderInput.EAGER_END, f"one{space}{space}", 6) == []
    (end,) = tracker.on_input(ProviderInput.END, f"one{space}{space}", 7)
    assert end.transcript == f"one{space}{space}", "the end is verbatim"


@pytest.mark.parametrize("space", SPACE_ONLY)
def test_turn_of_white_space_ends_with_it(space: str) -> None:
    tracker = TurnTracker()
    tracker.on_input(ProviderInput.START, None, 1)
    (end,) = tracker.on_input(ProviderInput.END, space, 2)
    assert end.transcript == space


def test_replay_of_trailing_spaces_adds_none() -> None:
    tracker = TurnTracker(jitter=10)
    tracker.on_input(ProviderInput.START, None, 1)
    tracker.on_input(ProviderInput.UPDATE, "one two three ", 50)
    tracker.commit_prefix("one two ")
    tracker.socket_opened()
    tracker.on_input(ProviderInput.START, None, 40)
    for position in (51, 52, 53):
        assert tracker.on_input(ProviderInput.UPDATE, "three ", position) == []
    (update,) = tracker.on_input(ProviderInput.UPDATE, "three four ", 60)
    assert update.transcript == "one two three four "


def test_split_turn_keeps_published_separator() -> None:
    for known, first, second in (
        ("one\ntwo", "one", "two"),
        ("one two ", "one ", " two "),
        ("w1w2", "w1", "w2"),
        ("one, two", "one,", " two"),
    ):
        tracker = TurnTracker(TurnState(0, OpenTurn(transcript=known, transcript_position=50)))
        tracker.on_input(ProviderInput.START, None, 1)
        tracker.on_input(ProviderInput.END, first, 10)
        tracker.on_input(ProviderInput.START, None, 12)
        (end,) = tracker.on_input(ProviderInput.END, second, 60)
        assert end.transcript == known


def test_state_of_earlier_version_is_joined_as_before() -> None:
    known = OpenTurn(transcript="one two three", transcript_position=50, committed_text="one two")
    tracker = TurnTracker(TurnState(0, known))
    tracker.on_input(ProviderInput.START, None, 1)
    (update,) = tracker.on_input(ProviderInput.UPDATE, "three four", 60)
    assert update.transcript == "one two three four"
