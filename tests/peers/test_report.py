"""ComparisonReport of a comparison."""

import msgspec
import pytest

from tests.peers.report import ClientRow, ComparisonReport, Cost, footer, json_of, table, text_of
from worker.bench.machine import Machine
from worker.bench.plan import LoadPlan
from worker.bench.words import WordResult


def cost(
    us: float = 100, *, share: float = 0.1, late: float = 0, others: float = 0, lost: int = 0
) -> Cost:
    return Cost(
        cpu_us_per_chunk=us,
        cpu_share=share,
        kib_per_session=12.34,
        mib=56.7,
        slots_late=late,
        others_busy=others,
        verdict=WordResult(words=10, lost=lost),
    )


def report(*rows: ClientRow) -> ComparisonReport:
    return ComparisonReport(
        date="2026-01-01",
        machine=Machine("A CPU", 2, (0.1, 0.2, 0.3), "Linux 6"),
        versions={"python": "3.11", "uvloop": None},
        plan=LoadPlan(sessions=50, seconds=10),
        redis_us_per_chunk=(20, 40, 60),
        rows=(ClientRow(name="turnbus 1", costs=(cost(), cost(300), cost(200))), *rows),
    )


def test_table_compares_medians_with_turnbus() -> None:
    own, other, none = table(
        report(
            ClientRow(name="other 2", costs=(cost(500, lost=1), cost(700, lost=2))),
            ClientRow(name="none 3", costs=(), failure="not installed: no network"),
        )
    )[1:]
    assert own == ["turnbus 1", "200.0", "1.00", "10", "12.3", "57", "0.0", "30", "0", "0", "0"]
    assert other == ["other 2", "600.0", "3.00", "10", "12.3", "57", "0.0", "20", "3", "0", "0"]
    assert none == ["none 3", *["-"] * 10]


def test_text_has_notes_and_failures() -> None:
    got = report(ClientRow(name="none 3", costs=(), failure="not installed: no network"))
    text = text_of(got)
    assert "50 sessions, 100 ms chunks, pcm_s16le 16000 Hz, 10 s after 5 s, 3 runs" in text
    assert "The comparison favors the other clients" in text
    assert "its Redis took 40.0 us of CPU per chunk" in text
    assert footer(got) == ["none 3: not installed: no network"]
    lines = text.splitlines()
    assert not any(line != line.rstrip() for line in lines)
    assert len({len(line) for line in lines if line.startswith(("turnbus 1", "none 3"))}) <= 2


@pytest.mark.parametrize(
    ("costs", "warnings"),
    [
        (cost(), []),
        (cost(share=0.9), ["warning: x used 90% of a core: this load is about all it can do"]),
        (cost(late=0.05), ["warning: x: 5.0% of its slots were late"]),
        (cost(others=0.5), ["warning: while x ran, other programs used 50% of the machine"]),
        (cost(lost=4), []),
    ],
)
def test_footer_warns_of_distorted_results(costs: Cost, warnings: list[str]) -> None:
    got = report(ClientRow(name="x", costs=(costs,)))
    assert footer(got) == warnings
    assert got.ok, "only the worker promises that"


def test_footer_ends_with_lost_words() -> None:
    got = report()
    failed = msgspec.structs.replace(
        got, rows=(ClientRow(name="turnbus 1", costs=(cost(lost=1),)),)
    )
    assert footer(failed)[-1].startswith("FAILED")
    assert not failed.ok


def test_json_is_a_single_object() -> None:
    got = msgspec.json.decode(
        json_of(
            report(ClientRow(name="other 2", costs=(cost(),)), ClientRow(name="none 3", costs=()))
        )
    )
    assert got["ok"] is True
    assert [row["name"] for row in got["rows"]] == ["turnbus 1", "other 2", "none 3"]
    assert set(got["results"]) == {"turnbus 1", "other 2"}
    assert got["results"]["other 2"]["x turnbus"] == 0.5
    assert any("favors the other clients" in note for note in got["notes"])
