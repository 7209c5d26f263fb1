# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation as a site: it builds, every link in it leads somewhere, and it asks for nothing from elsewhere."""

from __future__ import annotations

import html.parser
import re
import subprocess
import sys
import typing as t
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

from tests import site
from tests.support.collection import COLLECTION, REPOSITORY

#: Attributes whose file a browser loads by itself, unlike that of a link.
LOADED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src"), ("object", "data")}


class Reader(html.parser.HTMLParser):
    """The links, what is loaded, and the anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: t.Set[str] = set()
        self.loads: t.Set[str] = set()
        self.anchors: t.Set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: t.List[t.Tuple[str, t.Optional[str]]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif (tag, name) in LOADED and value:
                self.loads.add(value)
            elif (tag, name) == ("a", "href") and value:
                self.links.add(value)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> t.Dict[Path, Reader]:
    directory = tmp_path_factory.mktemp("site")
    assert site.build(directory) == 0
    return {path: Reader(path) for path in (directory / "html").rglob("*.html")}


def is_elsewhere(target: str) -> bool:
    return bool(re.match(r"[a-z]+:|//", target)) and not target.startswith("data:")


def test_every_link_leads_somewhere(pages: t.Mapping[Path, Reader]) -> None:
    broken = []
    for path, page in pages.items():
        for target in page.links | page.loads:
            if is_elsewhere(target) or target.startswith("data:"):
                continue
            file, anchor = urldefrag(unquote(target))
            there = (path.parent / file.partition("?")[0]).resolve() if file else path
            if not there.is_file() or (anchor and there in pages and anchor not in pages[there].anchors):
                broken.append(f"{path.name}: {target}")
    assert broken == []


def test_nothing_is_loaded_from_elsewhere(pages: t.Mapping[Path, Reader]) -> None:
    loads = [f"{path.name}: {target}" for path, page in pages.items() for target in page.loads if is_elsewhere(target)]
    directory = next(path for path in pages if path.name == "search.html").parent
    for path in directory.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        loads += [
            f"{path.name}: {url}" for url in re.findall(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')]*)", text)
        ]
    assert loads == []


def test_each_module_and_role_has_its_page(pages: t.Mapping[Path, Reader]) -> None:
    names = {f"{path.parent.name}/{path.stem}" for path in pages}
    modules = {f"modules/{path.stem}" for path in (COLLECTION / "plugins/modules").glob("[a-z]*.py")}
    roles = {f"roles/{path.parent.name}" for path in (COLLECTION / "roles").glob("*/README.md")}
    assert sorted((modules | roles) - names) == []
    text = next(path for path in pages if path.name == "service_restart.html").read_text(encoding="utf-8")
    for word in ("services.gate.min_healthy_time", "Examples", "Return values", "check_mode"):
        assert word in text


def test_each_page_is_reached_from_the_first(pages: t.Mapping[Path, Reader]) -> None:
    first = next(path for path in pages if path.name == "index.html" and path.with_name("search.html").exists())
    reached, waiting = {first}, [first]
    while waiting:
        path = waiting.pop()
        for target in pages[path].links:
            there = (path.parent / urldefrag(unquote(target))[0]).resolve()
            if there in pages and there not in reached:
                reached.add(there)
                waiting.append(there)
    # A form leads to the search, no link.
    assert sorted(path.name for path in set(pages) - reached) == ["search.html"]


def test_broken_links_fail_the_build(tmp_path: Path) -> None:
    """The anchor of a heading, a page and a picture that do not exist; all three are named."""
    source = tmp_path / "source"
    source.mkdir()
    links = "[one](other.md#no-such-heading), [two](no-such-page.md), ![three](no-such-picture.png)"
    (source / "index.md").write_text(f"# First\n\n{links}\n\n```{{toctree}}\nother\n```\n")
    (source / "other.md").write_text("# Other\n")
    words = ["-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-c", str(REPOSITORY / "docs")]
    command = [sys.executable, *words, str(source), str(tmp_path / "html")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode
    missing = [name for name in ("no-such-heading", "no-such-page", "no-such-picture") if name not in done.stderr]
    assert missing == [], done.stderr


def test_a_link_to_a_file_that_does_not_exist_is_named() -> None:
    with pytest.raises(SystemExit, match="there is no ../Makefiles"):
        site._site_link("[words]", "../Makefiles", site.DOCS / "checks.md")
