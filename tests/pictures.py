# SPDX-License-Identifier: GPL-3.0-or-later
"""``make pictures``: docs/pictures from the running sandbox: the report of the broken and of the deployed backend, its
dashboard, and what ``make demo`` prints. Without a deployed sandbox it runs the demo first.

Pages are photographed in Chromium, as WebP; the terminal is an SVG. What identifies the machine (its
name, the paths and ports of the sandbox) is replaced, so that two runs differ only in what was measured.
"""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import sys
import tempfile
import typing as t
import urllib.request
from pathlib import Path

import rich._export_format
import rich.console
import rich.text

from tests.sandbox import demo
from tests.sandbox.binaries import REPOSITORY
from tests.sandbox.layout import Sandbox
from tests.support import browser as browsers
from wheels_ops.report import page, report

PICTURES = REPOSITORY / "docs/pictures"
HOST = "web1.example.com"
#: Width and height in CSS pixels of a screenshot, and how well it is kept, 0 to 100.
WIDTH, HEIGHT, QUALITY = 1280, 900, 70
DASHBOARD = "/api/v1/system/dashboard"
#: No file may be larger: they are in every clone.
LARGEST = 200_000


def plain(text: str, sandbox: Sandbox) -> str:
    """A text without what is of this machine alone."""
    text = text.replace(str(sandbox.directory), "/srv").replace(str(REPOSITORY), "/opt/wheels-ops")
    return text.replace(socket.gethostname(), HOST)


def photograph(
    chromium: browsers.Browser, name: str, address: str, prepare: t.Callable[[browsers.Page], None], *schemes: str
) -> None:
    """The top of a page as NAME-SCHEME.webp, for each colour scheme."""
    tab = chromium.page()
    tab.call("Emulation.setDeviceMetricsOverride", width=WIDTH, height=HEIGHT, deviceScaleFactor=1, mobile=False)
    tab.call("Emulation.setScrollbarsHidden", hidden=True)
    tab.navigate(address)
    prepare(tab)
    for scheme in schemes:
        tab.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        shot = tab.call("Page.captureScreenshot", format="webp", quality=QUALITY)
        write(f"{name}-{scheme}.webp", base64.b64decode(shot["data"]))
    tab.close()


def write(name: str, content: bytes) -> None:
    if len(content) > LARGEST:
        raise SystemExit(f"{name} must have at most {LARGEST:,} bytes, got {len(content):,}.")
    PICTURES.mkdir(parents=True, exist_ok=True)
    (PICTURES / name).write_bytes(content)
    sys.stdout.write(f"  {len(content):>7,} bytes  docs/pictures/{name}\n")


def terminal(lines: str, title: str) -> str:
    """Coloured text as an SVG that names no font from elsewhere."""
    width = max(len(rich.text.Text.from_ansi(line).plain) for line in lines.splitlines())
    console = rich.console.Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    console.print(rich.text.Text.from_ansi(lines), soft_wrap=True)
    frame = re.sub(r"@font-face \{\{.*?\}\}\n", "", rich._export_format.CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    frame = frame.replace("Fira Code", "ui-monospace, SFMono-Regular, Menlo, Consolas")
    svg = console.export_svg(title=title, code_format=frame, unique_id="terminal")
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def _sign_in(token: str) -> t.Callable[[browsers.Page], None]:
    def prepare(tab: browsers.Page) -> None:
        tab.evaluate(
            f"document.querySelector('#token').value = {json.dumps(token)};"
            " document.querySelector('form button').click()"
        )
        tab.drain(1.0)
        name = json.dumps(socket.gethostname())
        tab.evaluate(
            "(async () => { for (let i = 0; i < 100 && !document.querySelector('#auto'); i++)"
            " await new Promise(done => setTimeout(done, 100)); document.querySelector('#auto').click();"
            f" document.querySelectorAll('dd').forEach(e => {{ if (e.textContent === {name})"
            f" e.textContent = {json.dumps(HOST)} }}) }})()"
        )

    return prepare


def main() -> int:
    sandbox = Sandbox()
    files = {name: sandbox.reports / f"{name}.json" for name in ("before", "after", "done")}
    if not all(path.exists() for path in files.values()) or not _answers(sandbox):
        status = demo.run(sandbox)
        if status:
            return status
    before, after, done = (json.loads(plain(path.read_text(), sandbox)) for path in files.values())
    text = report.text(before, after, done, colour=True)
    write("demo.svg", terminal(text, "make demo").encode())
    token = (sandbox.directory / "etc/ops-token").read_text().split()[0]
    with tempfile.TemporaryDirectory() as place, browsers.browser() as chromium:
        for name, health, earlier in (("report-before", before, None), ("report-after", after, before)):
            path = Path(place, f"{name}.html")
            path.write_text(
                page.page(health, title=f"wheels.ops: {HOST}", facts={}, before=earlier, remedies=done),
                encoding="utf-8",
            )
            photograph(chromium, name, path.as_uri(), lambda tab: None, "light")
        photograph(chromium, "dashboard", sandbox.facts().base_url + DASHBOARD, _sign_in(token), "light", "dark")
    return 0


def _answers(sandbox: Sandbox) -> bool:
    try:
        with urllib.request.urlopen(f"{sandbox.facts().base_url}/livez", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
