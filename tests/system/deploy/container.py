"""Builds and runs an image of `deploy/image/Dockerfile` as far as that works without an engine.

Each stage gets a directory that stands in for its root. The base image's /usr and the like are this
machine's, read-only. This Python takes the place of the image's Python. What the Dockerfile copies
or installs is put there.

Commands run inside by `chroot` in a mount namespace. It needs root and Linux.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[3]
IMAGE = ROOT / "deploy" / "image"

# $1 is the root, $2 the prefix of a Python, $3 "ro" or "rw"; then the command. What the base
# image has is bound; the prefix also where this Python was built to find its library.
_ENTER = """
set -e
root=$1 prefix=$2 mode=$3
shift 3
mount --make-rprivate /
mount --bind $root $root
for each in usr bin lib lib64 etc dev proc; do
    [ -e /$each ] || continue
    mkdir -p $root/$each
    mount --rbind /$each $root/$each
    mount -o remount,bind,ro $root/$each
done
for each in /usr/local $prefix; do
    mkdir -p $root$each
    mount --bind $prefix $root$each
    mount -o remount,bind,ro $root$each
done
mount -o remount,bind,$mode $root
exec /usr/sbin/chroot $root "$@"
"""


class Stage(NamedTuple):
    """One stage of a Dockerfile."""

    name: str
    base: str
    steps: list[tuple[str, str]]

    def last(self, instruction: str) -> str:
        """Return the argument of the last instruction of a kind."""
        return [argument for each, argument in self.steps if each == instruction][-1]

    @property
    def workdir(self) -> str:
        """Return the working directory of its commands."""
        return next((argument for each, argument in self.steps if each == "WORKDIR"), "/")

    def command(self, instruction: str) -> list[str]:
        """Return the words of the last instruction of a kind, which must not need a shell."""
        words = json.loads(re.sub(r"^.*?(?=\[)", "", self.last(instruction), count=1))
        assert isinstance(words, list)
        return words


def stages() -> dict[str, Stage]:
    """Read the Dockerfile."""
    text = re.sub(r"^#.*\n", "", (IMAGE / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE)
    found: dict[str, Stage] = {}
    stage = None
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if not line:
            continue
        instruction, _, argument = line.partition(" ")
        if instruction == "FROM":
            base, _, name = argument.partition(" AS ")
            stage = found[name] = Stage(name, base, [])
        elif stage is not None:
            stage.steps.append((instruction, argument.strip()))
    return found


def context() -> Iterator[Path]:
    """Yield the files that are sent to the build, after the ignore file."""
    rules = (IMAGE / "Dockerfile.dockerignore").read_text("utf-8").split()
    kept = [rule[1:] for rule in rules if rule.startswith("!")]
    dropped = [rule.removeprefix("**/") for rule in rules if rule.startswith("**/")]
    assert rules[0] == "*", "nothing but what is named"
    for name in kept:
        path = ROOT / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and not any(
                fnmatch(part, rule) for part in file.parts for rule in dropped
            ):
                yield file.relative_to(ROOT)


def environment(stage: Stage) -> dict[str, str]:
    """Return the variables that the stage's ENV instructions set."""
    pairs = [
        pair.partition("=")
        for instruction, argument in stage.steps
        if instruction == "ENV"
        for pair in argument.split()
    ]
    return {name: value for name, _, value in pairs}


class Container:
    """The root of one stage, and commands in it."""

    def __init__(self, root: Path, stage: Stage) -> None:
        self.root = root
        self.stage = stage
        (root / "tmp").mkdir(parents=True, exist_ok=True)

    def words(self, command: list[str], *, mode: str, user: str = "0:0") -> list[str]:
        """Return the command line that runs a command inside."""
        uid, _, gid = user.partition(":")
        drop = ["setpriv", "--reuid", uid, "--regid", gid, "--clear-groups", "--no-new-privs"]
        drop += ["--inh-caps=-all", "--bounding-set=-all"] if uid != "0" else []
        enter = ["unshare", "--mount", "/bin/sh", "-c", _ENTER, "enter"]
        return [*enter, str(self.root), sys.base_prefix, mode, *drop, *command]

    def env(self, **more: str) -> dict[str, str]:
        """Return the environment inside: the image's, plus access to the package registry."""
        registry = {
            name: value
            for name, value in os.environ.items()
            if re.search("^(PIP_CERT|SSL_CERT_.*|.*_proxy)$", name, re.IGNORECASE)
        }
        return {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            **registry,
            **environment(self.stage),
            **more,
        }

    def run(self, script: str) -> None:
        """Execute a RUN instruction."""
        command = ["/bin/sh", "-ec", f"cd {self.stage.workdir}; {script}"]
        done = subprocess.run(
            self.words(command, mode="rw"), env=self.env(), capture_output=True, text=True
        )
        assert done.returncode == 0, f"RUN {script}\n{done.stdout}\n{done.stderr}"


def build(name: str, directory: Path) -> Container:
    """Build a stage and the stages it needs."""
    known = stages()
    stage = known[name]
    root = directory / name
    if stage.base in known:
        before = build(stage.base, directory)
        shutil.copytree(before.root, root, symlinks=True)
        stage = Stage(name, stage.base, [*before.stage.steps, *stage.steps])
        fresh = stage.steps[len(before.stage.steps) :]
    else:
        fresh = stage.steps
    container = Container(root, stage)
    for instruction, argument in fresh:
        if instruction == "RUN" and argument.startswith("apt-get "):
            need_compiler()  # /usr is this machine's
        elif instruction == "RUN":
            container.run(argument)
        elif instruction == "COPY":
            _copy(argument, container, directory)
    return container


def _copy(argument: str, container: Container, directory: Path) -> None:
    *sources, target = argument.split()
    into = container.root / str(Path(container.stage.workdir) / target).lstrip("/")
    if sources[0].startswith("--from="):
        source = build(sources[0].removeprefix("--from="), directory).root / sources[1].strip("/")
        shutil.copytree(source, container.root / target.strip("/"), symlinks=True)
        return
    for file in context():
        for source in map(Path, sources):
            if file == source:
                goal = into / file.name if target.endswith("/") else into
            elif source in file.parents:
                goal = into / file.relative_to(source)
            else:
                continue
            goal.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / file, goal)


def need_compiler() -> None:
    """Skip the test where no C program can be compiled."""
    header = Path(sysconfig.get_path("include"), "Python.h")
    if shutil.which("gcc") is None or not header.exists():
        pytest.skip("no gcc, or no headers of this Python")


def need_namespaces() -> None:
    """Skip the test where commands cannot run in a root of their own."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("only root on Linux can give a command a root of its own")
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("mount namespaces are not allowed here")
