"""Redis users of `deploy/redis/users.acl`, under which the suite runs.

A worker connects as `worker`, a producer as `producer` and a consumer as `consumer`. A test
inspects, breaks and cleans up as `admin`. The user `default`, which needs no name, is off.
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
    """Return the rules of each user in the file, with the key prefix replaced."""
    lines = USERS.read_text("ascii").splitlines()
    assert all(line.startswith("user ") for line in lines), "Redis takes no comments in this file"
    rules = (line.replace("stt:", f"{prefix}:").split()[1:] for line in lines)
    return {user: its for user, *its in rules}


def as_user(url: str, user: str) -> str:
    """Return the URL of a server, a cluster or sentinels with this user's credentials."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{user}:{PASSWORD}@{rest.rpartition('@')[2]}"


class GuardedRedis(EmbeddedRedis):
    """A server that has exactly the users of the file, set up as an operator does.

    Its `url` connects as the admin.
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
        """URL that connects as the admin."""
        return as_user(super().url, "admin")


def grant(urls: Iterable[str], prefix: str) -> None:
    """Grant the users their rights on the keys of one prefix, and on no others, at these servers.

    The user `default` does not change: it is off where the file was loaded. Cluster nodes and
    servers below a sentinel connect to each other as `default`.
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
    """Return the commands, keys and channels the server denied to the users since `grant`."""
    return [
        f"{entry['username']} may not use the {entry['reason']} {entry['object']}"
        for entry in admin.acl_log()
        if entry["username"] in users()
    ]
