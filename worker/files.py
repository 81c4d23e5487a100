"""Files with secrets, which may be replaced while a process runs."""

from pathlib import Path


def file_version(path: Path) -> tuple[int, int, int] | None:
    """Return values that change with a file's content; None if it cannot be looked at."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
