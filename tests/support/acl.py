"""The Redis users of `deploy/redis/users.acl`: the suite runs under them.

A worker connects as `worker`, what appends as `producer`, what reads turns as `consumer`; `admin`
is the test itself, when it looks, breaks or cleans up. `default`, who needs no name, is off.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from redis import Redis

from worker.local.redis import EmbeddedRedis

USERS = Path(__file__).parents[2] / "deploy" / "redis" / "users.acl"
PASSWORD = "of-a-test"
SINCE_7_2 = "+client|setinfo"


def users(prefix: str = "stt") -> dict[str, list[str]]:
    """Return the rules of each user, as the file has them but for the prefix of the keys."""
    lines = USERS.read_text("ascii").splitlines()
    assert all(line.startswith("user ") for line in lines), "Redis takes no comments in this file"
    rules = (line.replace("stt:", f"{prefix}:").split()[1:] for line in lines)
    return {user: its for user, *its in rules}


def as_user(url: str, user: str) -> str:
    """Return the URL of a bus, plain, of a cluster or of sentinels, as this user connects."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{user}:{PASSWORD}@{rest.rpartition('@')[2]}"


class GuardedRedis(EmbeddedRedis):
    """A server with the users of the file, prepared as an operator does, and nobody else.

    Its `url` is the admin's.
    """

    def __init__(
        self, binary: Path, directory: Path, options: Mapping[str, str], *, sentinel: bool = False
    ) -> None:
        known = directory / "users.acl"
        secret = "#" + hashlib.sha256(PASSWORD.encode()).hexdigest()
        lines = [f"user {user} {secret} {' '.join(rules)}\n" for user, rules in users().items()]
        known.write_text("".join(lines), "ascii")
        super().__init__(binary, directory, {**options, "aclfile": str(known)}, sentinel=sentinel)

    @property
    def url(self) -> str:
        """Where to connect."""
        return as_user(super().url, "admin")


def grant(urls: Iterable[str], prefix: str) -> None:
    """Give the users their rights on the keys of a prefix, and on no others, at these servers.

    `default` stays as it is: off where the file was loaded; servers of a cluster or below a
    sentinel talk to each other as it.
    """
    for url in urls:
        with Redis.from_url(url) as admin, admin.pipeline(transaction=False) as pipe:
            before_7_2 = admin.info("server")["redis_version"].startswith("7.0.")
            for user, rules in users(prefix).items():
                if user == "default":
                    continue
                known = [rule for rule in rules if not (before_7_2 and rule == SINCE_7_2)]
                pipe.execute_command("ACL SETUSER", user, "reset", f">{PASSWORD}", *known)
            pipe.acl_log_reset()
            pipe.execute()


def refusals(admin: Redis) -> list[str]:
    """Return what the server has refused to the users since they were granted their rights."""
    return [
        f"{entry['username']} may not use the {entry['reason']} {entry['object']}"
        for entry in admin.acl_log()
        if entry["username"] in users()
    ]
