"""The console page: no request leaves the machine, and its parts fit each other."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import pytest

CONSOLE = Path(str(resources.files("worker.ingest"))) / "console"
FILES = {path.name: path.read_text() for path in sorted(CONSOLE.iterdir())}
SCRIPTS = {name: text for name, text in FILES.items() if name.endswith(".js")}
JS_TESTS = sorted(Path(__file__).parent.glob("console_*.test.mjs"))
VOID = {"meta", "link", "input"}
SVG_NAMESPACE = "http://www.w3.org/2000/svg"


class Page(HTMLParser):
    """Collects ids, classes, attributes, and the text of scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.classes: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            self.attributes.append((tag, name, value or ""))
            if name == "id":
                self.ids.append(value or "")
            if name == "class":
                self.classes.update((value or "").split())

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at line {self.getpos()[0]} closes another element"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in {"script", "style"} and data.strip():
            self.inline.append(data)


@pytest.fixture(scope="module")
def page() -> Page:
    parsed = Page()
    parsed.feed(FILES["index.html"])
    parsed.close()
    assert parsed.open == []
    return parsed


def test_files_are_there_and_are_used(page: Page) -> None:
    assert {"index.html", "console.js", "worklet.js", "style.css"} <= FILES.keys()
    used = {value for _, name, value in page.attributes if name in {"src", "href"}}
    for text in SCRIPTS.values():
        used.update(re.findall(r'(?:from |addModule\()"(?:\./)?([\w.]+)"', text))
    assert used | {"index.html"} == FILES.keys()


@pytest.mark.parametrize("name", FILES)
def test_no_address_of_another_machine(name: str) -> None:
    text = FILES[name].replace(SVG_NAMESPACE, "").replace("http://localhost only", "")
    assert re.findall(r"(?:https?:|wss?:)?//[\w-]+\.\w+|https?://\w+", text) == []
    assert "@import" not in text
    assert "url(" not in text


def test_page_has_nothing_inline(page: Page) -> None:
    assert page.inline == []
    names = {name for _, name, _ in page.attributes}
    assert not {name for name in names if name == "style" or name.startswith("on")}
    assert not [
        value for *_, value in page.attributes if value.startswith(("javascript:", "data:"))
    ]


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_writes_text_only(name: str) -> None:
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|setAttribute"
    )
    assert re.findall(forbidden, SCRIPTS[name]) == []
    assert (
        re.findall(
            r"localStorage|sessionStorage|indexedDB|document\.cookie|console\.\w+\(", SCRIPTS[name]
        )
        == []
    )


def test_ids_are_unique_and_those_of_the_script_exist(page: Page) -> None:
    assert len(page.ids) == len(set(page.ids))
    script = SCRIPTS["console.js"]
    looked_up = set(re.findall(r'element\("([\w-]+)"\)', script))
    for listed in re.findall(r"(?:of|const\} \*/ \()\s*\[((?:\"[\w-]+\",? ?)+)\]", script):
        looked_up.update(re.findall(r'"([\w-]+)"', listed))
    assert {"kill", "cut", "outage", "speed"} <= looked_up
    assert looked_up <= set(page.ids)


def test_labels_and_parts_exist(page: Page) -> None:
    labels = {value for _, name, value in page.attributes if name == "aria-labelledby"}
    assert labels <= set(page.ids)
    parts = set(re.findall(r'part\(item, "(\w+)"\)', SCRIPTS["turn_list.js"]))
    assert len(parts) == 6
    assert parts <= page.classes


def test_colours_of_the_timeline_exist_in_both_schemes() -> None:
    light, dark = re.findall(r":root \{([^}]*)\}", FILES["style.css"])
    names = [set(re.findall(r"--([\w-]+):", scheme)) for scheme in (light, dark)]
    assert names[0] == names[1]
    drawn = set(re.findall(r'bar\((?:sound \? )?"(\w+)"(?: : "(\w+)")?', SCRIPTS["timeline.js"]))
    kinds = re.findall(r'kind: "(\w+)"', SCRIPTS["turns.js"])
    assert {name for pair in drawn for name in pair if name} | set(kinds) <= names[0]


def _luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("text", "ground"),
    [
        ("text", "page"), ("text", "panel"), ("faint", "page"), ("faint", "panel"),
        ("accent", "panel"), ("on-accent", "accent"), ("eager-text", "panel"), ("error", "page"),
        ("socket", "panel"), ("mark", "panel"), ("forced", "panel"), ("ended", "panel"),
    ],
)  # fmt: skip
def test_text_has_the_contrast_of_aa(scheme: int, text: str, ground: str) -> None:
    block = re.findall(r":root \{([^}]*)\}", FILES["style.css"])[scheme]
    colours = dict(re.findall(r"--([\w-]+): #(\w{6})", block))
    darker, lighter = sorted(_luminance(colours[name]) for name in (text, ground))
    assert (lighter + 0.05) / (darker + 0.05) >= 4.5


@pytest.mark.parametrize("test", JS_TESTS, ids=lambda test: test.name)
def test_modules_pass_their_own_tests(test: Path, tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    for name, text in SCRIPTS.items():
        (tmp_path / name).write_text(text)
    # Without it, node takes a `.js` file for a CommonJS module.
    (tmp_path / "package.json").write_text('{"type": "module"}')
    shutil.copy(test, tmp_path)
    command = [node, "--test", test.name]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
