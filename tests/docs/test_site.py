"""The site has every page. `.ci/run` builds it."""

import re

from tests.docs.pages import DOCS, ROOT


def test_every_page_is_in_the_navigation() -> None:
    lines = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:\n")[2]
    named = set(re.findall(r": (\S+\.md)$", lines, re.MULTILINE))
    assert {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} <= named
    index = (DOCS / "index.md").read_text("utf-8")
    for name in named - {"index.md"}:
        if (DOCS / name).exists():
            assert f"]({name})" in index, name
