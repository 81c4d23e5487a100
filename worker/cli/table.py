"""Text tables, durations and sizes for terminal output."""

from collections.abc import Iterable, Sequence

from worker.text import padded, printable, width


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return aligned columns under a header; untrusted text is sanitized."""
    lines = [tuple(header), *(tuple(map(printable, row)) for row in rows)]
    columns = [max(map(width, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(padded, line, columns)).rstrip(" ") for line in lines)


def format_bytes(size: int) -> str:
    """Return a number of bytes to three digits: `999`, `1.5k`, `27M`."""
    value, unit = float(size), ""
    for larger in ("k", "M", "G"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{value:.1f}{unit}" if unit and value < 9.95 else f"{value:.0f}{unit}"


def format_duration(seconds: float) -> str:
    """Return a duration: `0.4s`, `12s`, `3m07s`, `2h05m`."""
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3_600:
        return f"{whole // 60}m{whole % 60:02}s"
    return f"{whole // 3_600}h{whole % 3_600 // 60:02}m"
