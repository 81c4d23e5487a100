"""`turnbus check`: whether a worker with these settings would be fit to run."""

import os
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import msgspec
from redis.asyncio import Redis

from schemas import Encoding, Keys
from worker.addresses import redacted
from worker.bus.rights import missing_rights
from worker.commands import Subparsers, add_command, add_config, read_settings, run_async
from worker.commands.bus import open_bus
from worker.errors import (
    BusUnavailable,
    SettingsError,
    SttBusy,
    SttCredentials,
    SttError,
    SttPermanent,
    SttTransient,
)
from worker.settings import Settings, api_key
from worker.stt.cartesia import Service, StreamSettings, open_stream

_OLDEST_REDIS = (7, 0)
_STT_ADVICE: dict[type[SttError], str] = {
    SttBusy: "the key is good, but every socket of the plan is in use",
    SttCredentials: "mend the key or the account's credit; until then sessions wait",
    SttPermanent: "mend stt_url, stt_model, stt_version or the stt_turn_* settings",
    SttTransient: "see that stt_url can be reached from here; workers keep trying",
}


class Finding(msgspec.Struct, frozen=True):
    """What one check found; the detail says what to do unless all is well."""

    check: Literal["settings", "redis", "memory", "rights", "service"]
    result: Literal["ok", "warn", "fail"]
    detail: str


Report = Callable[[Finding], None]


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "check",
        run,
        about="Check the settings, Redis (version, memory policy, rights) and the API key\n"
        "against the speech-to-text service, a line for each. Exit code 1 if any fails.",
        examples="turnbus check\nturnbus check --config turnbus.toml --json",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON lines")
    add_config(parser)


def run(arguments: Namespace) -> int:
    """Check everything that can be checked."""
    failed = False

    def report(finding: Finding) -> None:
        nonlocal failed
        failed |= finding.result == "fail"
        if arguments.json:
            print(msgspec.json.encode(finding).decode(), flush=True)
        else:
            print(f"{finding.result:<5} {finding.check:<9} {finding.detail}", flush=True)

    try:
        settings = read_settings(arguments)
    except SettingsError as error:
        for fault in error.faults:
            report(Finding("settings", "fail", fault))
    else:
        report(Finding("settings", "ok", f"worker {settings.worker_id}, prefix {settings.prefix}"))
        run_async(partial(_check, settings, report))
    return 1 if failed else 0


async def _check(settings: Settings, report: Report) -> None:
    try:
        async with open_bus(settings) as redis:
            await _check_redis(redis, settings, report)
    except BusUnavailable as error:
        report(Finding("redis", "fail", str(error)))
    await _check_service(settings, report)


async def _check_redis(redis: Redis, settings: Settings, report: Report) -> None:
    about: dict[str, Any] = await redis.info()
    name = "Valkey" if "valkey_version" in about else "Redis"
    version = str(about.get("valkey_version") or about["redis_version"])
    where = f"{name} {version} at {redacted(settings.redis_url)}"
    if tuple(map(int, version.split(".")[:2])) >= _OLDEST_REDIS:
        report(Finding("redis", "ok", where))
    else:
        oldest = ".".join(map(str, _OLDEST_REDIS))
        report(Finding("redis", "fail", f"{where} is too old; run {oldest} or later"))
    policy = str(about.get("maxmemory_policy", "unknown"))
    if policy == "noeviction":
        report(Finding("memory", "ok", "maxmemory-policy is noeviction"))
    else:
        advice = "a full Redis would drop live sessions; set it to noeviction"
        report(Finding("memory", "warn", f"maxmemory-policy is {policy}: {advice}"))
    await _check_rights(redis, settings.prefix, report)


async def _check_rights(redis: Redis, prefix: str, report: Report) -> None:
    missing = await missing_rights(redis, Keys(prefix))
    if missing.commands or missing.keys or missing.faults:
        report(Finding("rights", "fail", str(missing)))
    else:
        report(Finding("rights", "ok", f"every command a worker needs, on keys {prefix}:*"))


async def _check_service(settings: Settings, report: Report) -> None:
    """Open a socket with the settings, and close it."""
    try:
        key = api_key(settings, os.environ)
    except SettingsError as error:
        report(Finding("service", "fail", str(error)))
        return
    service = Service(settings.stt_url, settings.stt_version, key)
    stream_settings = StreamSettings(
        model=settings.stt_model,
        encoding=Encoding.PCM_S16LE,
        sample_rate=16_000,
        turn=settings.turn_config,
    )
    try:
        async with await open_stream(service, stream_settings) as stream:
            request = stream.request_id
    except SttError as error:
        result: Literal["warn", "fail"] = "warn" if isinstance(error, SttBusy) else "fail"
        asked = f" (request {error.request_id})" if error.request_id else ""
        report(Finding("service", result, f"{error}{asked}; {_STT_ADVICE[type(error)]}"))
    else:
        detail = f"{settings.stt_url} takes the key and {settings.stt_model} (request {request})"
        report(Finding("service", "ok", detail))
