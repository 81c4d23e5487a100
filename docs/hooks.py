"""MkDocs hooks: add the files that pages link to outside `docs/` to the site.

On a code host, `docs/deployment.md` links to `../deploy/RUNBOOK.md`. The site has no `docs/`
level, so the hooks copy these files into it and adjust the links.
"""

import posixpath
import re
from pathlib import Path
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).parent.parent
OUTSIDE: Final = ("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "SECURITY.md", "deploy", "schemas")
"""Files and folders beside `docs/` that pages may link to."""

_SUFFIXES: Final = {"", ".acl", ".json", ".md", ".svg", ".txt", ".yaml"}
_LINK: Final = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside `docs/` under the same paths."""
    for name in OUTSIDE:
        top = ROOT / name
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            if path.is_file() and path.suffix in _SUFFIXES:
                source = path.relative_to(ROOT).as_posix()
                files.append(File.generated(config, source, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between repository paths into links between site paths."""
    source = page.file.src_uri
    outside = source.partition("/")[0] in OUTSIDE
    folder = posixpath.dirname(source if outside else f"docs/{source}")

    def site_path(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[1]))
        target = "index.md" if target == "README.md" else target.removeprefix("docs/")
        return posixpath.relpath(target, posixpath.dirname(source) or ".")

    return _LINK.sub(site_path, markdown)
