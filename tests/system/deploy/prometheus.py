"""A real Prometheus: it scrapes workers, evaluates PromQL and alerting rules, and is removed."""

import json
import math
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from subprocess import STDOUT
from typing import Final, NamedTuple, Self
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import anyio
import anyio.to_thread
import yaml

from worker.local.redis import free_port

JOB: Final = "turnbus"
_READY_TIMEOUT_S: Final = 30.0
_LOOK_S: Final = 0.1


class Series(NamedTuple):
    """One series of a result."""

    labels: Mapping[str, str]
    points: list[tuple[float, float]]
    """Unix time in seconds, and value. Missing values have no point."""


class Prometheus:
    """A running server; `start` makes one."""

    def __init__(self, url: str) -> None:
        self._url = url

    @classmethod
    @asynccontextmanager
    async def start(
        cls, targets: Mapping[str, int], rules: Path, every_s: int, directory: Path
    ) -> AsyncIterator[Self]:
        """Scrape the targets, local ports by name of instance, until the block ends.

        Raises TimeoutError with the server's output if it does not come up.
        """
        config = {
            "global": {"scrape_interval": f"{every_s}s", "evaluation_interval": f"{every_s}s"},
            "rule_files": [str(rules)],
            "scrape_configs": [
                {
                    "job_name": JOB,
                    "static_configs": [
                        {"targets": [f"127.0.0.1:{port}"], "labels": {"instance": instance}}
                        for instance, port in targets.items()
                    ],
                }
            ],
        }
        (directory / "prometheus.yaml").write_text(yaml.safe_dump(config), "utf-8")
        port = free_port()
        log = directory / "prometheus.log"
        with log.open("wb") as output:
            process = await anyio.open_process(
                [
                    "prometheus",
                    f"--config.file={directory / 'prometheus.yaml'}",
                    f"--storage.tsdb.path={directory / 'prometheus'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=output,
                stderr=STDOUT,
            )
        async with process:
            try:
                prometheus = cls(f"http://127.0.0.1:{port}")
                if not await prometheus._ready():
                    raise TimeoutError(log.read_text("utf-8"))
                yield prometheus
            finally:
                process.kill()

    @staticmethod
    def installed() -> bool:
        """Return whether Prometheus is installed here."""
        return shutil.which("prometheus") is not None

    async def query(self, expression: str, began: float, ended: float, step_s: int) -> list[Series]:
        """Evaluate PromQL over a time given in Unix seconds; NaN values are left out."""
        asked = {"query": expression, "start": began, "end": ended, "step": step_s}
        answer = json.loads(await self._get(f"/api/v1/query_range?{urlencode(asked)}"))
        return [
            Series(
                one["metric"],
                [
                    (at, number)
                    for at, text in one["values"]
                    if math.isfinite(number := float(text))
                ],
            )
            for one in answer["data"]["result"]
        ]

    async def _ready(self) -> bool:
        with anyio.move_on_after(_READY_TIMEOUT_S):
            while True:
                try:
                    await self._get("/-/ready")
                except HTTPError as starting:  # 503
                    starting.close()
                    await anyio.sleep(_LOOK_S)
                except URLError:  # it does not listen yet
                    await anyio.sleep(_LOOK_S)
                else:
                    return True
        return False

    async def _get(self, path: str) -> bytes:
        return await anyio.to_thread.run_sync(partial(_get, f"{self._url}{path}"))


def _get(url: str) -> bytes:
    with urlopen(url, timeout=30) as answer:
        body: bytes = answer.read()
    return body
