"""The drawn dashboard: every panel, with and without data, and a real Prometheus."""

import itertools
import json
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import anyio
import pytest

from schemas import Keys
from tests.support.harness import PCM16, Harness
from tests.system.deploy.dashboard import HERE, UNITS, Line, Run, Span, lines, picture, query
from tests.system.deploy.gateway import busy_gateway
from tests.system.deploy.prometheus import Prometheus, Series
from worker.admin import Readiness, serve_admin
from worker.ingest.metrics import prometheus_text
from worker.local.emulator.engines.script import synthesize_silence, synthesize_words
from worker.local.redis import free_port

DASHBOARD = json.loads((HERE / "dashboard.json").read_text("utf-8"))
PANELS = {panel["id"]: panel for panel in DASHBOARD["panels"] if panel["type"] != "row"}
SPAN = Span(1_000.0, 1_060.0, [1_030.0])


def test_every_dashboard_unit_is_supported() -> None:
    for panel in PANELS.values():
        assert UNITS[panel["fieldConfig"]["defaults"]["unit"]](1.0)


def _texts(drawn: str) -> list[str]:
    return [text for each in ET.fromstring(drawn).iter() if (text := each.text)]


def test_panels_are_drawn_with_and_without_data() -> None:
    shown = _texts(
        picture(DASHBOARD, Run({name: [] for name in PANELS}, SPAN, ["1  done"], "none fired"))
    )
    for panel in DASHBOARD["panels"]:
        assert panel["title"] in shown
    assert shown.count("No data") == len(PANELS)
    assert {"1  done", "none fired"} <= set(shown)


def test_lines_are_named_by_legend_format() -> None:
    (panel,) = (panel for panel in PANELS.values() if panel["title"] == "The network: sockets lost")
    lost = Series({"turnbus_fault_class": "transient"}, [(1_000.0, 1.0), (1_002.0, 3.0)])
    silent = Series({"turnbus_fault_class": "permanent"}, [])
    found = lines(panel, [[lost, silent], [Series({}, [(1_000.0, 0.5)])]])
    assert [line.name for line in found] == ["lost, transient", "replayed, s/s"]
    drawn = picture(
        DASHBOARD, Run({name: [] for name in PANELS} | {panel["id"]: found}, SPAN, [], "")
    )
    assert {"lost, transient", "replayed, s/s"} <= set(_texts(drawn))
    assert _texts(drawn).count("No data") == len(PANELS) - 1


@pytest.mark.parametrize("kind", ["stat", "timeseries"])
def test_panels_accept_gaps_in_data(kind: str) -> None:
    points = [(1_000.0, 0.0), (1_002.0, 2.0), (1_010.0, 5.0)]
    found = {
        name: [Line("a", panel["fieldConfig"]["defaults"]["unit"], right=False, points=points)]
        for name, panel in PANELS.items()
        if panel["type"] == kind
    }
    drawn = picture(DASHBOARD, Run({name: [] for name in PANELS} | found, SPAN, [], ""))
    assert _texts(drawn).count("No data") == len(PANELS) - len(found)


def test_long_list_of_alerts_is_wrapped() -> None:
    fired = f"Alerts that fired: {', '.join(f'Alert{number} at 1:00' for number in range(30))}"
    shown = _texts(picture(DASHBOARD, Run({name: [] for name in PANELS}, SPAN, [], fired)))
    lines = [text for text in shown if "Alert" in text]
    assert len(lines) > 2
    assert " ".join(lines) == fired


def test_equal_runs_give_equal_pictures() -> None:
    found = [Line("a", "s", right=False, points=[(1_000.0, 1.0), (1_002.0, 2.0)])]
    run = Run(dict.fromkeys(PANELS, found), SPAN, [], "")
    assert picture(DASHBOARD, run) == picture(DASHBOARD, run)


@pytest.mark.skipif(not Prometheus.installed(), reason="Prometheus is not installed")
async def test_prometheus_evaluates_every_panel_query(harness: Harness, tmp_path: Path) -> None:
    port = free_port()
    state = Readiness(ready=True, reasons=(), sessions=1, capacity=1)
    async with (
        harness.worker_process("one", tmp_path / "log", admin_addr=f"127.0.0.1:{port}"),
        busy_gateway(harness.redis, Keys(harness.prefix)) as gateway,
        serve_admin(
            ("127.0.0.1", 0), lambda: state, lambda: prometheus_text(gateway.gauges)
        ) as gateway_port,
        Prometheus.start(
            {"one": port, "gateway": gateway_port}, HERE / "alerts.yaml", 1, tmp_path
        ) as prometheus,
    ):

        async def silent() -> set[str]:
            """Return the panels that have no data now."""
            found = set()
            for panel in PANELS.values():
                now = time.time()
                for target in panel["targets"]:
                    if await prometheus.query(query(target["expr"]), now - 30, now, 1):
                        break
                else:
                    found.add(panel["title"])
            return found

        calls = (f"call-{number}" for number in itertools.count())
        with anyio.fail_after(60):
            while await silent():
                await gateway.append()
                call = next(calls)
                await harness.announce(call, PCM16)
                await harness.play(
                    call, synthesize_words([1, 2], PCM16) + synthesize_silence(900, PCM16)
                )
