"""The runbook's commands can be pasted: their syntax is valid and what they name exists."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.system.deploy.container import ROOT
from tests.system.deploy.manifests import DEPLOY, one, overlay, workloads
from worker.cli.main import _parser

PAGES = sorted(DEPLOY.glob("*.md")) + sorted(DEPLOY.glob("[!o]*/**/*.md"))
RUNBOOK = (DEPLOY / "RUNBOOK.md").read_text("utf-8")


def _blocks(text: str) -> list[str]:
    found = re.findall(r"^( *)(?:\d+\. )?```bash\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    return [re.sub(f"^{indent}", "", block, flags=re.MULTILINE) for indent, block in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DEPLOY)))
def test_runbook_commands_have_valid_syntax(page: Path) -> None:
    for block in _blocks(page.read_text("utf-8")):
        done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DEPLOY)))
def test_runbook_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target


def test_runbook_has_commands() -> None:
    assert len(_blocks(RUNBOOK)) > 10


def test_names_in_runbook_exist() -> None:
    found = re.search(r"OVERLAY=(\S+)", RUNBOOK)
    assert found
    path = ROOT / found[1]
    assert path.is_dir()
    manifests = overlay("production-ingest")
    assert "deploy/kubernetes/overlays/production-ingest" in RUNBOOK
    secrets = set()
    for workload in workloads(manifests):
        pod = workload["spec"]["template"]["spec"]
        secrets |= {volume["secret"]["secretName"] for volume in pod["volumes"]}
        for each in pod["containers"][0]["env"]:
            secrets |= {each.get("valueFrom", {}).get("secretKeyRef", {}).get("name")} - {None}
    for reference in one(manifests, "TriggerAuthentication", "turnbus-redis")["spec"][
        "secretTargetRef"
    ]:
        secrets.add(reference["name"])
    made = set(re.findall(r"create secret generic (\S+)", RUNBOOK))
    assert made == secrets


def test_turnbus_commands_in_runbook_exist() -> None:
    lines = re.findall(r"^t ([^#\n]+)", RUNBOOK, re.MULTILINE)
    assert lines
    for line in lines:
        _parser(line.split()).parse_command(line.split())


def test_runbook_covers_alerts_of_the_gateway() -> None:
    groups = yaml.safe_load((DEPLOY / "observability" / "alerts.yaml").read_text("utf-8"))["groups"]
    (rules,) = (group["rules"] for group in groups if group["name"] == "turnbus-ingest")
    rows = RUNBOOK.partition("\n## Alerts\n")[2]
    assert {rule["alert"] for rule in rules} == set(re.findall(r"`(Turnbus\w+)`", rows)) - {
        "TurnbusIngest"
    }
