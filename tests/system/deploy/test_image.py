"""The image: its content, and that it runs as an unprivileged user on a read-only file system."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import Process
from packaging.requirements import Requirement

from tests.support.harness import KEY, PCM16, Harness, check_order, words
from tests.system.deploy.container import (
    IMAGE,
    ROOT,
    Container,
    build,
    context,
    need_namespaces,
    stages,
)
from tests.system.deploy.manifests import one, overlay
from worker.admin import Readiness, serve_admin
from worker.local.emulator.engines.script import synthesize_words
from worker.local.redis import free_port

PINS = {
    "runtime.txt": ("otlp", "uvloop"),
    "local.txt": ("otlp", "uvloop", "local"),
    "build.txt": (),
}
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def _pins(file: str) -> dict[str, str]:
    """Return the version of each package that a file pins, whatever its marker."""
    lines = (IMAGE / file).read_text("ascii").splitlines()
    found = [re.match(r"([a-z0-9-]+)==(\S+) ", line) for line in lines if "==" in line]
    return {each[1]: each[2] for each in found if each}


def _required(file: str) -> list[Requirement]:
    if file == "build.txt":
        hook = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"]
        wanted = [*PYPROJECT["build-system"]["requires"], *hook["compiler"]]
    else:
        extras = PYPROJECT["project"]["optional-dependencies"]
        wanted = [each for extra in PINS[file] for each in extras[extra]]
        wanted += PYPROJECT["project"]["dependencies"]
    return [Requirement(each) for each in wanted]


@pytest.mark.parametrize("file", PINS)
def test_requirements_are_pinned_by_version_and_hash(file: str) -> None:
    text = (IMAGE / file).read_text("ascii")
    assert "://" not in text
    assert not re.search(r"^\s*-(?!-hash)", text, re.MULTILINE), "no options, no addresses"
    for pin in re.split(r"\n(?=\S)", text.strip()):
        assert re.match(r"[a-z0-9-]+==\S+ (; .*)?\\\n +--hash=sha256:[0-9a-f]{64}", pin)
    pins = _pins(file)
    for each in _required(file):
        pinned = pins.get(each.name.lower())
        assert pinned, f"{each.name} is not pinned: deploy/image/README.md says how to pin it"
        assert each.specifier.contains(pinned), f"{each} is pinned to {pinned}"


def test_worker_image_has_no_local_server_packages() -> None:
    local = PYPROJECT["project"]["optional-dependencies"]["local"]
    assert not _pins("runtime.txt").keys() & {Requirement(each).name.lower() for each in local}


def test_copied_paths_exist() -> None:
    files = set(context())
    assert files, "something is sent"
    for stage in stages().values():
        for instruction, argument in stage.steps:
            if instruction != "COPY" or argument.startswith("--from="):
                continue
            for source in map(Path, argument.split()[:-1]):
                assert any(source in (file, *file.parents) for file in files), source


def test_build_context_excludes_unneeded_files() -> None:
    tops = {file.parts[0] for file in context()}
    files = {"LICENSE", "README.md", "hatch_build.py", "pyproject.toml"}
    assert tops == {*files, "deploy", "schemas", "worker"}
    assert not [file for file in context() if "__pycache__" in file.parts]


def test_image_matches_manifests() -> None:
    worker = stages()["worker"]
    pod = one(overlay("production"), "Deployment")["spec"]["template"]["spec"]
    asked = pod["securityContext"]
    assert worker.last("USER") == f"{asked['runAsUser']}:{asked['runAsGroup']}"
    assert worker.command("ENTRYPOINT") == ["turnbus"]
    assert worker.command("CMD") == ["run"]
    (port,) = pod["containers"][0]["ports"]
    assert worker.last("EXPOSE") == str(port["containerPort"])


async def test_health_check_reports_liveness() -> None:
    state = Readiness(ready=False, reasons=("draining",), sessions=0, capacity=1)
    async with serve_admin(("127.0.0.1", 0), lambda: state) as port:
        assert await _health(f"0.0.0.0:{port}") == 0
    assert await _health(f"0.0.0.0:{port}") == 1
    async with serve_admin(("localhost", 0), lambda: state) as port:
        assert await _health(f"localhost:{port}") == 0
    assert await _health("") == 0


async def test_health_check_asks_the_given_address() -> None:
    state = Readiness(ready=True, reasons=(), sessions=0, capacity=1)
    async with serve_admin(("127.0.0.1", 0), lambda: state) as port:
        assert await _health("127.0.0.1:1", f"127.0.0.1:{port}") == 0
    assert await _health("", f"127.0.0.1:{port}") == 1


async def _health(address: str, *arguments: str) -> int:
    check = await anyio.run_process(
        [sys.executable, str(IMAGE / "healthcheck.py"), *arguments],
        env={**os.environ, "TURNBUS_ADMIN_ADDR": address},
        check=False,
    )
    return check.returncode


# -- every instruction is executed, and the result run


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Container:
    """Build the worker's image."""
    need_namespaces()
    return build("worker", tmp_path_factory.mktemp("image"))


@asynccontextmanager
async def _running(container: Container, *arguments: str, **env: str) -> AsyncIterator[Process]:
    """Run the container as Kubernetes does: its user, no rights, a read-only root."""
    command = container.stage.command("ENTRYPOINT")
    command += arguments or container.stage.command("CMD")
    words = container.words(command, mode="ro", user=container.stage.last("USER"))
    process = await anyio.open_process(words, env=container.env(**env), stderr=None)
    async with process:
        try:
            yield process
        finally:
            if process.returncode is None:
                process.terminate()
            code = await process.wait()
    assert code == 0


@pytest.mark.slow
async def test_image_runs_worker(built: Container, harness: Harness) -> None:
    port = free_port()
    before = {path: path.lstat().st_mtime_ns for path in built.root.rglob("opt/**/*")}
    env = {
        "TURNBUS_REDIS_URL": harness.redis_url,
        "TURNBUS_PREFIX": harness.prefix,
        "TURNBUS_STT_URL": harness.stt_url,
        "TURNBUS_WORKER_ID": "worker-1",
        "TURNBUS_ADMIN_ADDR": f"0.0.0.0:{port}",
        "CARTESIA_API_KEY": KEY,
    }
    async with _running(built, **env):
        await harness.announce("call-1")
        await harness.play("call-1", synthesize_words([0, 1, 2], PCM16), pause_s=0)
        events = (await harness.until_ended("call-1"))["call-1"]
        check = built.words(
            built.stage.command("HEALTHCHECK"), mode="ro", user=built.stage.last("USER")
        )
        healthy = await anyio.run_process(check, env=built.env(**env), check=False)
        assert healthy.returncode == 0, healthy.stderr
    check_order(events)
    assert words(events) == [0, 1, 2]
    after = {path: path.lstat().st_mtime_ns for path in built.root.rglob("opt/**/*")}
    assert after == before, "nothing was written"


@pytest.mark.slow
def test_image_is_small(built: Container) -> None:
    files = [path for path in built.root.rglob("opt/**/*") if path.is_file()]
    assert sum(path.lstat().st_size for path in files) < 60 * 1024**2
    assert not list(built.root.rglob("pip")), "it installs nothing"


@pytest.mark.slow
def test_image_needs_only_libraries_of_its_base(built: Container) -> None:
    _check_libraries(built)


@pytest.mark.slow
async def test_image_runs_local_server(tmp_path: Path) -> None:
    need_namespaces()
    local = build("local", tmp_path)
    _check_libraries(local)
    for engine in ("script", "speech"):
        async with _running(local, "stt-server", "--engine", engine, "--port", "0") as server:
            assert server.stdout is not None
            output = b""
            while b"ws://127.0.0.1:" not in output:
                output += await server.stdout.receive()


def _check_libraries(container: Container) -> None:
    """Assert that the installed files find their libraries among themselves or in a slim base."""
    libraries = [path for path in container.root.rglob("opt/**/*.so*") if path.is_file()]
    command = ["/usr/bin/ldd", *(f"/{path.relative_to(container.root)}" for path in libraries)]
    words = container.words(command, mode="ro")
    done = subprocess.run(words, env=container.env(), capture_output=True, text=True, check=True)
    outside = set(
        re.findall(r"^\s+(\S+?)\.so\S* (?:=> /(?!opt/)|=> not)", done.stdout, re.MULTILINE)
    )
    glibc = {"libc", "libm", "libmvec", "libdl", "librt", "libpthread"}
    assert outside <= glibc | {"libgcc_s", "libstdc++", "libz"}
