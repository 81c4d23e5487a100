"""`turnbus check`: check whether a worker can run with the settings."""

import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import anyio
import msgspec
from anyio import to_thread
from redis.exceptions import ReadOnlyError

from schemas import Encoding, Keys
from worker import build, descriptors, telemetry, tls
from worker.admin import Readiness, serve_admin
from worker.bus import fitness
from worker.bus.client.cluster import ClusterClient
from worker.bus.client.connection import describe
from worker.bus.permissions import find_missing
from worker.cli.bus import open_redis
from worker.cli.command import Command, Config, Option, print_json, run_async
from worker.errors import (
    BusUnavailableError,
    SettingsError,
    SttBusyError,
    SttCredentialsError,
    SttError,
    SttPermanentError,
    SttShortageError,
    SttTransientError,
)
from worker.ingest.guard import Guard
from worker.ingest.settings import IngestSettings
from worker.settings import Settings, check_worker_id, load, load_ingest
from worker.stt.keys import load_keys
from worker.stt.provider import Notes, StreamSettings
from worker.stt.routes import Route, find_routes
from worker.telemetry.environment import Signal, collector_address, tls_fault
from worker.telemetry.otlp import metric_push
from worker.text import pluralize, printable, without_keys
from worker.urls import join_host_port, redacted

CheckName: TypeAlias = Literal[
    "settings",
    "build",
    "files",
    "admin",
    "traces",
    "metrics",
    "redis",
    "memory",
    "rights",
    "service",
    "gateway",
]

_COLLECTOR_TIMEOUT_S = 3.0
_COLLECTOR_TRUST = "name your own authority's file: OTEL_EXPORTER_OTLP_CERTIFICATE=FILE"
_ANSWER_TIMEOUT_S = 1.0
_STT_ADVICE: dict[type[SttError], str] = {  # subclasses first
    SttShortageError: "raise that limit on this machine",
    SttBusyError: "the key is valid, but every socket of the plan is in use",
    SttCredentialsError: "fix the key or the account's credit; until then it serves no session",
    SttPermanentError: "fix {settings} or the stt_turn_* settings",
    SttTransientError: "make {address} reachable from here; workers keep retrying",
}
_ADDRESS_SETTING = {"cartesia": "stt_url", "flux": "stt_flux_url"}
_OTHER_SETTINGS = {"cartesia": "stt_model, stt_version", "flux": "stt_flux_model"}


class Finding(msgspec.Struct, frozen=True):
    """Result of one check; the detail includes advice unless the result is ok."""

    check: CheckName
    result: Literal["ok", "warn", "fail"]
    detail: str


Report = Callable[[Finding], None]


class Check(Command):
    """Check whether a worker can run with the settings, and print a line for each check.

    The checks cover the settings, the address of health checks, the collectors of traces and
    metrics, Redis (version, memory policy, permissions) and each API key against its provider.
    Exit code 2 if `turnbus run` would reject the settings, 1 if any other check fails. If a worker
    already runs at the address of health checks, that is a warning. Settings of the gateway and
    its files of secrets are checked if any is set.

    examples:
      turnbus check
      turnbus check --config turnbus.toml --json
    """

    json: Annotated[bool, Option("print the findings as JSON lines")] = False
    config: Config = None

    def run(self) -> int:
        """Run all checks."""
        failed = False

        def report(finding: Finding) -> None:
            nonlocal failed
            failed |= finding.result == "fail"
            detail = without_keys(printable(finding.detail))
            if self.json:
                print_json(msgspec.structs.replace(finding, detail=detail))
            else:
                print(f"{finding.result:<5} {finding.check:<9} {detail}", flush=True)

        try:
            settings = load(os.environ, self.config)
            check_worker_id(settings)
        except SettingsError as error:
            for line in error.problems:
                report(Finding("settings", "fail", line))
            return 2
        report(Finding("settings", "ok", f"worker {settings.worker_id}, prefix {settings.prefix}"))
        report(Finding("build", "ok", "turnbus {version}, {form}".format(**build.describe())))
        usable = run_async(partial(_check, settings, report))
        _check_gateway(self.config, report)
        return int(failed) if usable else 2


async def _check(settings: Settings, report: Report) -> bool:
    """Run all checks but the first; return whether a worker would accept the settings."""
    usable = True
    checks: dict[CheckName, Callable[[Settings, Report], Awaitable[None]]] = {
        "files": _check_files,
        "admin": _check_admin,
        "traces": _check_traces,
        "metrics": _check_metrics,
        "redis": _check_redis,
        "service": _check_providers,
    }
    for name, check in checks.items():
        try:
            await check(settings, report)
        except SettingsError as error:
            usable = False
            for line in error.problems:
                report(Finding(name, "fail", line))
        except BusUnavailableError as error:
            report(Finding(name, "fail", str(error)))
    return usable


def _check_gateway(config: Path | None, report: Report) -> None:
    """Check the settings of the gateway, which a worker does not read, if any is set."""
    try:
        _, gateway = load_ingest(os.environ, config)
        if gateway == IngestSettings():
            return
        Guard(gateway)
    except SettingsError as error:
        for line in error.problems:
            report(Finding("gateway", "fail", line))
    else:
        detail = f"settings and files of secrets of a gateway at {gateway.ingest_listen}"
        report(Finding("gateway", "ok", detail))


async def _check_files(settings: Settings, report: Report) -> None:
    """Compare the hard limit of open files, which `turnbus run` sets, with the requirement."""
    _, hard = descriptors.limits()
    if too_few := descriptors.shortfall(settings, hard):
        fits = descriptors.capacity(settings, hard)
        report(Finding("files", "warn" if fits else "fail", too_few))
    else:
        allowed = "any number" if hard == descriptors.UNLIMITED else str(hard)
        detail = f"{descriptors.needed(settings)} are needed, {allowed} may be open"
        report(Finding("files", "ok", detail))


async def _check_admin(settings: Settings, report: Report) -> None:
    if settings.admin is None:
        report(Finding("admin", "ok", "health checks are off (TURNBUS_ADMIN_ADDR is empty)"))
        return
    nothing = Readiness(ready=False, reasons=(), sessions=0, capacity=0)
    try:
        async with serve_admin(settings.admin, lambda: nothing):
            report(Finding("admin", "ok", f"{settings.admin_addr} is free for health checks"))
    except SettingsError:
        worker = await _worker_at(settings.admin)
        if worker is None:
            raise
        state = "ready" if worker.ready else f"not ready ({', '.join(worker.reasons)})"
        runs = f"a worker runs here and answers at {settings.admin_addr}: {state}"
        running = pluralize(worker.sessions, "session")
        advice = "another one needs a TURNBUS_ADMIN_ADDR and a TURNBUS_WORKER_ID of its own"
        report(Finding("admin", "warn", f"{runs}, {running}; {advice}"))


async def _worker_at(address: tuple[str, int]) -> Readiness | None:
    """Return the readiness of the worker at an address; None if no worker answers."""
    answer = b""
    try:
        with anyio.fail_after(_ANSWER_TIMEOUT_S):
            async with await anyio.connect_tcp(*address) as stream:
                await stream.send(b"GET /readyz HTTP/1.1\r\nHost: worker\r\n\r\n")
                async for piece in stream:
                    answer += piece
        return msgspec.json.decode(answer.partition(b"\r\n\r\n")[2], type=Readiness)
    except (OSError, anyio.BrokenResourceError, ValueError):  # a timeout, or another program
        return None


async def _check_traces(settings: Settings, report: Report) -> None:
    if provider := telemetry.tracer_provider(settings.worker_id):  # raises as `turnbus run` would
        provider.shutdown()
    await _check_collector("traces", report)


async def _check_metrics(settings: Settings, report: Report) -> None:
    metric_push(settings.worker_id)
    await _check_collector("metrics", report)


async def _check_collector(signal: Signal, report: Report) -> None:
    at = collector_address(signal, os.environ)
    if at is None:
        report(Finding(signal, "ok", "nothing is sent to a collector"))
        return
    where = join_host_port(*at)
    try:
        with anyio.fail_after(_COLLECTOR_TIMEOUT_S):
            await (await anyio.connect_tcp(*at)).aclose()
    except (OSError, TimeoutError) as error:
        lost = f"nothing answers at {where} ({describe(error)}): {signal} would be lost"
        report(Finding(signal, "warn", lost))
        return
    ask = partial(tls_fault, signal, os.environ, _COLLECTOR_TIMEOUT_S)
    if (fault := await to_thread.run_sync(ask)) is not None:
        lost = f"{signal} to {where} would be lost: {tls.explain(fault, _COLLECTOR_TRUST)}"
        report(Finding(signal, "warn", lost))
    else:
        report(Finding(signal, "ok", f"go to {where}"))


async def _check_redis(settings: Settings, report: Report) -> None:
    """Check Redis, its memory policy and its permissions."""
    async with open_redis(settings) as redis:
        servers = await fitness.servers(redis)
        where = redacted(settings.redis_url)
        problem = next(filter(None, (server.fault for server in servers)), None)
        shown = " and ".join(dict.fromkeys(server.shown for server in servers))
        shown = shown or "a server whose version this user may not read"
        if isinstance(redis, ClusterClient):
            where += f", a cluster of {pluralize(len(await redis.masters()), 'master')}"
        if problem:
            report(Finding("redis", "fail", f"Redis at {where}: {problem}"))
        else:
            report(Finding("redis", "ok", f"{shown} at {where}"))
        policies = {server.maxmemory_policy for server in servers} or {"unknown"}
        policy = " and ".join(sorted(policies - {"noeviction"}))
        if not policy:
            report(Finding("memory", "ok", "maxmemory-policy is noeviction"))
        else:
            advice = "a full Redis would drop live sessions; set it to noeviction"
            report(Finding("memory", "warn", f"maxmemory-policy is {policy}: {advice}"))
        try:
            missing: object = await find_missing(redis, Keys(settings.prefix))
        except ReadOnlyError as error:
            missing = describe(error)
        if missing:
            report(Finding("rights", "fail", str(missing)))
        else:
            detail = f"every command a worker needs, on keys {settings.prefix}:*"
            report(Finding("rights", "ok", detail))


async def _check_providers(settings: Settings, report: Report) -> None:
    """Ask each configured provider that has a key."""
    keys = load_keys(settings, os.environ)
    for line in keys.skipped:
        report(Finding("service", "warn", line))
    for route in find_routes(settings, keys.usable, os.environ):
        await _ask(route, settings, report)


async def _ask(route: Route, settings: Settings, report: Report) -> None:
    """Open a socket to a provider with the settings, and close it."""
    proxy, model = route.proxy, route.offer.models[0]
    stream_settings = StreamSettings(
        model=model,
        encoding=Encoding.PCM_S16LE,
        sample_rate=16_000,
        turn=settings.turn_config,
    )
    through = f" through the proxy {proxy.address}" if proxy else ""
    unusable: list[str] = []
    notes = Notes(unusable=unusable.append)
    try:
        async with await route.provider.open(route.endpoint, stream_settings, notes) as stream:
            request = stream.request_id
    except SttError as error:
        result: Literal["warn", "fail"] = "warn" if isinstance(error, SttBusyError) else "fail"
        asked = f" (request {error.request_id})" if error.request_id else ""
        name = route.provider.name
        advice = error.advice or _stt_advice(error, name)
        if proxy and proxy.address in str(error):
            through = ""
        detail = f"provider {name}: {error}{asked}{through}; {advice}"
        report(Finding("service", result, detail))
    else:
        detail = f"{route.url} accepts the key and {model} (request {request})"
        report(Finding("service", "ok", f"{detail}{through}"))
    for line in unusable:
        report(Finding("service", "warn", f"{line}; every session would report that"))


def _stt_advice(error: SttError, provider: str) -> str:
    """Return what to do about an error, with the names of this provider's settings."""
    advice = next(_STT_ADVICE[kind] for kind in _STT_ADVICE if isinstance(error, kind))
    address = _ADDRESS_SETTING[provider]
    return advice.format(address=address, settings=f"{address}, {_OTHER_SETTINGS[provider]}")
