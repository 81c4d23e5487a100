"""Documents use plain words."""

import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, without_blocks, without_code

EXCLUDED = re.compile(
    r"\b(whoever|nobody|somebody|told|tells?|hears?|heard|buried|bury|ours)\b", re.IGNORECASE
)
_PROVIDER = re.compile(r"\bthe (?:STT )?service\b", re.IGNORECASE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_use_plain_words(page: Path) -> None:
    text = without_code(without_blocks(page.read_text("utf-8")))
    assert not EXCLUDED.findall(text)
    assert not _PROVIDER.findall(text), "say `the provider`"
