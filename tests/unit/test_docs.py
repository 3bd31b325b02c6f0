"""What the repository says of itself leads somewhere: links and citations to a heading, named files to a file."""

import ast
import re
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = {".py", ".md", ".yaml", ".json", ".sh", ".sbatch", ".toml", ".html", ".js"}
HISTORY = {"CHANGELOG.md", "benchmarks/results"}  # names files as they were called then


def tracked() -> list[Path]:
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    found = [path for path in map(ROOT.joinpath, names) if path.suffix in TEXT and path.is_file()]
    return [path for path in found if path != Path(__file__)]  # which has links that lead nowhere


FILES = tracked()
FOLDERS = "|".join(sorted({re.escape(path.relative_to(ROOT).parts[0]) for path in FILES if path.parent != ROOT}))
ROOMS = "|".join(sorted({path.parent.name for path in FILES if path.parent.parent == ROOT / "ttt_dist"}))
CITED = re.compile(r"(?<![\w/.-])docs/(?:[\w-]+\.md)(?:#[\w-]+)?")
LINKED = re.compile(r"\]\((?!\w+:)([^()\s]+)\)")
LINKED_PAGE = re.compile(r"\]\((?!\w+:)([\w./-]+\.md(?:#[\w-]+)?)\)")
NAMED = re.compile(rf"(?<![\w/.:-])(?:(?:{FOLDERS})/[\w./{{}},*-]*|(?:{ROOMS})/[\w/{{}},*]+\.py)")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading: its words in lower case joined by hyphens, punctuation left out."""
    words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", words.strip().lower()).replace(" ", "-")


@cache
def anchors(page: Path) -> set[str]:
    """Of all headings of a page; GitHub numbers those that come again."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#{1,6} +(.+)$", FENCED.sub("", page.read_text(encoding="utf8")), re.MULTILINE):
        name = anchor(heading)
        count = found.get(name, 0)
        found[name] = count + 1
        if count:
            found[f"{name}-{count}"] = 1
    return set(found)


def dangling(path: Path, text: str) -> Iterator[str]:
    """Citations and links in a file's text that lead to no file, or to no heading of it."""
    links = (LINKED if path.suffix == ".md" else LINKED_PAGE).findall(text)
    for base, target in [(ROOT, target) for target in CITED.findall(text)] + [(path.parent, link) for link in links]:
        name, _, heading = target.partition("#")
        page = (base / name).resolve() if name else path
        if not page.exists() or (heading and heading not in anchors(page)):
            yield target


def alternatives(pattern: str) -> Iterator[str]:
    """`a/{b,c}.py` as `a/b.py` and `a/c.py`."""
    parts = [part.split(",") if index % 2 else [part] for index, part in enumerate(re.split(r"[{}]", pattern))]
    return map("".join, product(*parts))


def missing(text: str) -> Iterator[str]:
    """Paths that begin with a folder of the repository, or are modules of a folder of ttt_dist, where nothing is."""
    for found in NAMED.findall(text):
        for name in alternatives(found.rstrip(".,")):
            if not any(any(base.glob(name)) for base in (ROOT, ROOT / "ttt_dist")):
                yield name


def test_links_and_citations_lead_to_headings() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {target}" for path in FILES for target in dangling(path, path.read_text("utf8"))
    ]
    assert not wrong, "\n".join(wrong)


def test_pages_name_files_that_exist() -> None:
    pages = [(path.relative_to(ROOT), path) for path in FILES if path.suffix == ".md"]
    wrong = [
        f"{place}: {name}"
        for place, path in pages
        if not any(place.is_relative_to(part) for part in HISTORY)
        for name in missing(path.read_text("utf8"))
    ]
    assert not wrong, "\n".join(wrong)


def test_the_house_stands_on_what_its_page_says() -> None:
    """The table of folders in docs/architecture.md, against their imports."""
    page = (ROOT / "docs" / "architecture.md").read_text("utf8")
    rows = re.findall(r"^\| `(?:ttt_dist/)?(\w+)` \|[^|]*\| ([^|]*) \|$", page, re.MULTILINE)
    told = {folder: set(below.split(", ")) - {"nothing"} for folder, below in rows}
    found: dict[str, set[str]] = {folder: set() for folder in told}
    for path in FILES:
        folder = room(path.relative_to(ROOT).with_suffix("").parts)
        if path.suffix == ".py" and folder in told:
            nodes = ast.walk(ast.parse(path.read_text("utf8")))
            modules = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
            found[folder] |= {room(module.split(".")) for module in modules} & set(told) - {folder}
    assert told == found


def room(parts: Sequence[str]) -> str:
    """The folder that a module's names lead into, as the table calls it."""
    return parts[1] if parts[0] == "ttt_dist" and len(parts) > 1 else parts[0]


@pytest.mark.parametrize(
    ("heading", "expected"),
    [
        ("Batches, ZeRO, precision", "batches-zero-precision"),
        ("SST, BANOM, PPM", "sst-banom-ppm"),
        ("Who may ask?", "who-may-ask"),
        ("`compose` and [shards](data.md#shards): a_b", "compose-and-shards-a_b"),
        ("A - b", "a---b"),
    ],
)
def test_anchors_are_github_s(heading: str, expected: str) -> None:
    assert anchor(heading) == expected


def test_what_leads_nowhere_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One\n```\n# no heading\n```\n## Two\n# One\n")
    text = (
        "(docs/method.md#decoding, docs/method.md#nowhere, docs/absent.md) [a](page.md#one-1) [b](page.md#no-heading)"
    )
    assert list(dangling(page, text)) == ["docs/method.md#nowhere", "docs/absent.md", "page.md#no-heading"]
    assert list(dangling(page, "[a](#two) [b](#three) [c](other.png) [d](https://example.org/x.md)")) == [
        "#three",
        "other.png",
    ]
    named = "`ttt_dist/{train,no}.py`, `recipes/*.yaml`, python tools/absent.py, `sequence/tokens.py`, `sequence/absent.py`."
    assert list(missing(named)) == ["ttt_dist/no.py", "tools/absent.py", "sequence/absent.py"]
