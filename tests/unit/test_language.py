"""Comments, docstrings and strings of the code keep to plain words; `CONTRIBUTING.md` has them."""

import ast
import io
import re
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXCLUDED = re.compile(
    r"\b(whoever|nobody|somebody|told|tells?|hears?|heard|buried|bury|ours)\b", re.IGNORECASE
)


def _texts(source: str) -> list[str]:
    """Return the comments of a module and its strings, docstrings among them."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    constants = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    return comments + [node.value for node in constants if isinstance(node.value, str)]


def test_code_uses_plain_words() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in [*ROOT.glob("worker/**/*.py"), *ROOT.glob("schemas/*.py")]
        for text in _texts(path.read_text())
        for word in EXCLUDED.findall(text)
    ]
    assert found == []
