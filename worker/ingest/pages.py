"""The files of the console page, as responses."""

from importlib.resources import files
from typing import Final, NamedTuple

CONTENT_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; media-src 'self' blob:; worker-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)

HEADERS: Final = (
    ("Content-Security-Policy", _POLICY),
    ("Permissions-Policy", "microphone=(self), camera=(), geolocation=()"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
)
"""Headers of each file: the page loads nothing from elsewhere, and no other page embeds it."""


class Page(NamedTuple):
    """One file."""

    content_type: str
    body: bytes


def console_pages() -> dict[str, Page]:
    """Return the files of the console by path; `/` is its index."""
    pages = {}
    for file in files("worker.ingest").joinpath("console").iterdir():
        suffix = file.name[file.name.rfind(".") :]
        if suffix in CONTENT_TYPES:
            pages[f"/{file.name}"] = Page(CONTENT_TYPES[suffix], file.read_bytes())
    pages["/"] = pages["/index.html"]
    return pages
