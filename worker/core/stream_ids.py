"""Redis stream entry ids: `milliseconds-sequence`, compared as integers."""

START = "0-0"
_MAX = 2**64 - 1


def order(entry_id: str) -> tuple[int, int]:
    """Return the sort key of an id. Raises `ValueError` if it is not an id."""
    ms, _, seq = entry_id.partition("-")
    return int(ms), int(seq or 0)


def successor(entry_id: str) -> str:
    """Return the smallest id after `entry_id`."""
    ms, seq = order(entry_id)
    return f"{ms}-{seq + 1}" if seq < _MAX else f"{ms + 1}-0"


def predecessor(entry_id: str) -> str:
    """Return the greatest id before `entry_id`; that of `0-0` is itself."""
    ms, seq = order(entry_id)
    if seq:
        return f"{ms}-{seq - 1}"
    return f"{ms - 1}-{_MAX}" if ms else START


def milliseconds(entry_id: str) -> int:
    """Return when Redis generated the id, in Unix milliseconds."""
    return int(entry_id.partition("-")[0])
