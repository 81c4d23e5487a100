"""Dashboard and alerts query only metrics and labels that a running worker and a gateway export."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import anyio
import anyio.to_thread
import promql_parser as promql
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from schemas import Keys
from tests.support.harness import Harness
from tests.support.polling import eventually
from tests.system.deploy.gateway import busy_gateway
from tests.system.deploy.manifests import DEPLOY
from worker.admin import serve_admin
from worker.ingest import metrics
from worker.ingest.metrics import prometheus_text
from worker.telemetry.metrics import INSTRUMENTS, WorkerGauges, samples
from worker.telemetry.otlp import INTERVAL_MS
from worker.telemetry.prometheus import prometheus_name, render

HERE = DEPLOY / "observability"
DASHBOARD = json.loads((HERE / "dashboard.json").read_text("utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
GROUPS = yaml.safe_load((HERE / "alerts.yaml").read_text("utf-8"))["groups"]
RULES = [rule for group in GROUPS for rule in group["rules"]]
COLLECTOR = yaml.safe_load((HERE / "collector.yaml").read_text("utf-8"))
OF_SCRAPES = {"job", "instance"}
"""Labels that Prometheus adds."""


def _queries() -> Iterator[tuple[str, str]]:
    for panel in PANELS:
        for target in panel["targets"]:
            asked = target["expr"].replace("$__rate_interval", "1m").replace("$job", ".*")
            yield panel["title"], asked
    for rule in RULES:
        yield rule["alert"], rule["expr"]


QUERIES = list(_queries())


def _parts(expression: Any) -> Iterator[Any]:
    """Yield an expression and all its parts."""
    yield expression
    for name in ("expr", "lhs", "rhs", "param", "vector_selector"):
        part = getattr(expression, name, None)
        if part is not None:
            yield from _parts(part)
    for part in getattr(expression, "args", None) or ():
        yield from _parts(part)


def _selectors(query: str) -> Iterator[tuple[str, dict[str, str]]]:
    for part in _parts(promql.parse(query)):
        if isinstance(part, promql.VectorSelector):
            assert part.name, query
            yield part.name, {each.name: each.value for each in part.matchers.matchers}


@pytest.fixture
async def series(harness: Harness) -> dict[str, dict[str, set[str]]]:
    """Scrape a running worker and a gateway; return the values of each label of each series."""
    async with (
        harness.worker() as worker,
        busy_gateway(harness.redis, Keys(harness.prefix)) as gateway,
        anyio.create_task_group() as tasks,
    ):
        meter = WorkerGauges(worker)
        tasks.start_soon(meter.follow_demand)
        await eventually(lambda: meter.demand is not None, "the demand to be known")
        async with serve_admin(
            ("127.0.0.1", 0), lambda: worker.readiness, lambda: render(samples(meter))
        ) as port:

            def get() -> str:
                with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                    return str(answer.read().decode())

            texts = [await anyio.to_thread.run_sync(get)]
        texts.append(prometheus_text(gateway.gauges).decode())
        tasks.cancel_scope.cancel()
    found: dict[str, dict[str, set[str]]] = {}
    for text in texts:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = found.setdefault(sample.name, {})
                for name, value in sample.labels.items():
                    labels.setdefault(name, set()).add(value)
    return found


async def test_queries_use_exported_metrics_and_labels(
    series: dict[str, dict[str, set[str]]],
) -> None:
    for title, query in QUERIES:
        labels = OF_SCRAPES.copy()
        for name, matchers in _selectors(query):
            assert name in series, f"{title}: no metric {name}"
            labels |= series[name].keys()
            for label, value in matchers.items():
                if label not in OF_SCRAPES:
                    assert label in series[name], f"{title}: {name} has no label {label}"
                    assert set(value.split("|")) <= series[name][label], f"{title}: {value}"
        for part in _parts(promql.parse(query)):
            if isinstance(part, promql.AggregateExpr) and part.modifier is not None:
                assert set(part.modifier.labels) <= labels, title


def test_quantiles_use_buckets() -> None:
    for title, query in QUERIES:
        for part in _parts(promql.parse(query)):
            if isinstance(part, promql.Call) and part.func.name == "histogram_quantile":
                (name,) = {name for name, _ in _selectors(str(part))}
                assert name.endswith("_seconds_bucket"), title
                assert "le" in next(iter(_parts(part.args[1]))).modifier.labels, title


def test_dashboard_shows_every_metric() -> None:
    shown = {name for panel in PANELS for t in panel["targets"] for name in _names(t["expr"])}
    names = [prometheus_name(each) for each in INSTRUMENTS]
    names += [prometheus_name(each) for each in metrics.INSTRUMENTS]
    for name in names:
        assert any(each.startswith(name) for each in shown), name


def _names(query: str) -> set[str]:
    asked = query.replace("$__rate_interval", "1m")
    return {name for name, _ in _selectors(asked)}


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        grid = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(grid["x"], grid["x"] + grid["w"])
            for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert all(panel["description"] for panel in PANELS)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_alerts_have_summary_and_runbook(rule: dict[str, Any]) -> None:
    assert rule["alert"].startswith("Turnbus")
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"].keys() == {"summary", "runbook"}
    for text in rule["annotations"].values():
        assert len(text) > 20
        assert "\n" not in text


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_accepts_rules() -> None:
    done = subprocess.run(
        ["promtool", "check", "rules", HERE / "alerts.yaml"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"{len(RULES)} rules found" in done.stdout


RAMP = "100+15x40"
"""A number of calls that grows by one a second, scraped every 15 s."""


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize(
    ("demand", "owned", "fires"),
    [
        # Two workers own all calls; the second was scraped half a minute before the first.
        (RAMP, ("50+7.5x40", "35+7.5x40"), False),
        ("700-15x40", ("350-7.5x40", "365-7.5x40"), False),
        ("100x40", ("50x40", "49x40"), True),
        (RAMP, ("50x40", "50x40"), True),
    ],
    ids=["more", "fewer", "one waits", "full"],
)
def test_waiting_sessions_are_those_without_owner(
    tmp_path: Path, demand: str, owned: tuple[str, str], fires: bool
) -> None:
    series = {'turnbus_demand{instance="a"}': demand}
    for instance, values in zip("ab", owned, strict=True):
        series[f'turnbus_sessions{{instance="{instance}"}}'] = values
    rule = next(rule for rule in RULES if rule["alert"] == "TurnbusSessionsWait")
    bare = {"alert": rule["alert"], "expr": rule["expr"], "for": rule["for"]}
    (tmp_path / "rules.yaml").write_text(
        yaml.safe_dump({"groups": [{"name": "one", "rules": [bare]}]}), "utf-8"
    )
    case = {
        "interval": "15s",
        "input_series": [{"series": name, "values": each} for name, each in series.items()],
        "alert_rule_test": [
            {
                "eval_time": "5m",
                "alertname": rule["alert"],
                "exp_alerts": [{"exp_labels": {}}] if fires else [],
            }
        ],
    }
    (tmp_path / "test.yaml").write_text(
        yaml.safe_dump(
            {"rule_files": ["rules.yaml"], "evaluation_interval": "15s", "tests": [case]}
        ),
        "utf-8",
    )
    done = subprocess.run(
        ["promtool", "test", "rules", tmp_path / "test.yaml"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_alert_names_are_unique() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names) > 10


def test_collector_uses_all_configured_components() -> None:
    used: dict[str, set[str]] = {"receivers": set(), "processors": set(), "exporters": set()}
    for pipeline in COLLECTOR["service"]["pipelines"].values():
        for kind, names in pipeline.items():
            used[kind] |= set(names)
    for kind, names in used.items():
        assert COLLECTOR[kind].keys() == names
    assert set(COLLECTOR["service"]["extensions"]) == COLLECTOR["extensions"].keys()
    for pipeline in COLLECTOR["service"]["pipelines"].values():
        assert pipeline["processors"][0] == "memory_limiter"
        assert pipeline["processors"][-1] == "batch"


def test_collector_expires_only_killed_workers() -> None:
    kept = COLLECTOR["exporters"]["prometheus"]["metric_expiration"]
    assert INTERVAL_MS / 1000 < int(kept.removesuffix("s")) < 120
