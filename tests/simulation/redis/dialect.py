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
    stream_gone: str | None
    """Error of a waiting XREADGROUP whose stream was removed; None: that of a new XREADGROUP."""
    group_gone: str | None
    """The same, for its group."""


VALKEY_9: Final = Dialect(
    versions={"redis_version": "7.2.4", "server_name": "valkey", "valkey_version": "9.1.0"},
    creates_idle_consumers=True,
    no_script="NOSCRIPT No matching script.",
    loading="LOADING Valkey is loading the dataset in memory",
    stream_gone=None,
    group_gone=None,
)
REDIS_7_0: Final = Dialect(
    versions={"redis_version": "7.0.15"},
    creates_idle_consumers=False,
    no_script="NOSCRIPT No matching script. Please use EVAL.",
    loading="LOADING Redis is loading the dataset in memory",
    stream_gone="UNBLOCKED the stream key no longer exists",
    group_gone="NOGROUP the consumer group this client was blocked on no longer exists",
)
