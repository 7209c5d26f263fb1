# SPDX-License-Identifier: GPL-3.0-or-later
"""The page of a run: what is wrong comes first, before and after only of a deployment, and nothing is run or loaded."""

from __future__ import annotations

import re
import typing as t

from wheels_ops.health.check import Check
from wheels_ops.report.page import Past, page
from wheels_ops.state.history import HistoryRecord

NOW = 1_800_000_000.0


def health(disk: str = "critical", **further: t.Any) -> t.Dict[str, t.Any]:
    checks = [
        Check("memory", "ok", value=20.5, unit="%", message="fine", duration_ms=120).as_dict(),
        Check("tts", "warning", value=61_400, unit="bytes of audio", message="slow", remedy="tts_engine").as_dict(),
        Check("disk", disk, value=97.84, unit="%", message="/ is at 97.84 %.", remedy="disk_cleanup").as_dict(),
        Check("cors", "critical", value=0, unit="percent", message="400", remedy="managed_files").as_dict(),
        Check("database", "skipped", message="Not measured: no database DSN is given.").as_dict(),
    ]
    base = {"status": "critical", "scores": {"performance": 88.4, "stability": None}, "left_out": ["celery"]}
    return {**base, "checks": checks, "measured_at": "2026-01-31T03:00:00Z", **further}


def text_of(document: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", document, flags=re.DOTALL)).split())


def test_page_begins_with_host_time_and_the_most_serious_problem() -> None:
    text = text_of(page(health(), title="wheels.ops: web1", facts={"deployment": "one"}))
    order = [
        "web1",
        "deployment one, measured 2026-01-31T03:00:00Z",
        "What is wrong",
        "Disk: critical",
        "Text to speech: warning",
    ]
    places = [text.find(words) for words in order]
    assert -1 not in places and places == sorted(places), dict(zip(order, places))
    assert "What to do: ansible-playbook -i INVENTORY playbooks/recover.yml (disk_cleanup)" in text
    assert "What to do: ansible-playbook -i INVENTORY playbooks/deploy.yml (managed_files)" in text
    assert "Before and after" not in text, "there was no deployment"
    for words in ("97.8 %", "61.4 kB of audio", "120 ms", "performance 88 of 100", "stability not measured"):
        assert words in text, words
    assert "no database DSN is given" in text and "celery: left out on purpose" in text


def test_page_links_the_runbook_of_what_is_wrong() -> None:
    """A link where the runbooks are published, the file of the repository where they are not."""
    template = "https://docs.example.com/runbooks/{name}.html?a=1&b=2"
    linked = page(health(), title="x", facts={}, runbook_url=template)
    assert 'href="https://docs.example.com/runbooks/disk.html?a=1&amp;b=2"' in linked
    assert "runbooks/memory" not in linked, "nothing is wrong with it"
    plain = page(health(), title="x", facts={})
    assert "Runbook: docs/runbooks/disk.md" in text_of(plain) and "<a " not in plain


def test_page_compares_where_there_was_a_deployment() -> None:
    text = text_of(page(health("ok"), before=health(), remedies={"disk": "log_rotate"}, title="x", facts={}))
    assert "Before and after" in text and "log_rotate" in text


def test_page_says_since_when_and_draws_the_last_day() -> None:
    measured = [
        HistoryRecord(
            time=f"2027-01-15T0{hour}:00:00Z", checks={"disk": "critical" if hour > 3 else "ok", "no_such": "ok"}
        )
        for hour in range(8)
    ]
    done = [HistoryRecord(time="2027-01-15T05:00:00Z", action="recover", outcome="not healthy")]
    document = page(health(), title="x", facts={}, past=Past(measured, done, {"disk": NOW - 7200}, NOW))
    assert "since 2027-01-15 06:00 UTC" in document
    assert document.count('class="fill-critical"') == 4 and document.count('class="fill-ok"') == 4
    assert "<title>recover 05:00: not healthy</title>" in document
    assert "The last day" not in page(health(), title="x", facts={}, past=Past(measured, done, {}, NOW + 9e5))


def test_page_needs_no_script_and_nothing_from_outside() -> None:
    document = page(health(), title="x", facts={})
    assert not re.search(r"<script|<link|<img|@import|url\(|https?://", document)
    assert 'name="viewport"' in document and "prefers-color-scheme:dark" in document and "@media print" in document


def test_page_names_the_column_of_each_cell_for_narrow_screens() -> None:
    document = page(health(), before=health(), title="x", facts={})
    cells = re.findall(r"<td[^>]*>", document)
    assert cells and all("data-label=" in cell for cell in cells)
