"""What differs between the servers that the model can be."""

from typing import Final, NamedTuple


class Dialect(NamedTuple):
    """One kind of server."""

    versions: dict[str, str]
    """How INFO names it."""
    creates_idle_consumers: bool
    """Whether a read or claim creates its consumer even if the consumer gets no entry."""
    no_script: str
    loading: str


VALKEY_9: Final = Dialect(
    versions={"redis_version": "7.2.4", "server_name": "valkey", "valkey_version": "9.1.0"},
    creates_idle_consumers=True,
    no_script="NOSCRIPT No matching script.",
    loading="LOADING Valkey is loading the dataset in memory",
)
REDIS_7_0: Final = Dialect(
    versions={"redis_version": "7.0.15"},
    creates_idle_consumers=False,
    no_script="NOSCRIPT No matching script. Please use EVAL.",
    loading="LOADING Redis is loading the dataset in memory",
)
