# SPDX-License-Identifier: GPL-3.0-or-later
"""A real headless Chromium, driven over its debugging protocol: pages, scripts in them, and what the console said.

with browser(hosts={"wheelsandwins.com:443": "127.0.0.1:8443"}) as chromium:
    page = chromium.page("https://wheelsandwins.com/")
    page.evaluate("fetch('https://api.test/x').then(r => r.status)")
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import typing as t
import urllib.request
from pathlib import Path

import websocket

from tests.support.waiting import wait_until

#: Names under which distributions install it (Debian's package is ``chromium``).
PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
#: No network of its own, no first-run pages; a sandbox inside a container or as root does not start.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--disable-default-apps",
    "--disable-extensions",
    "--ignore-certificate-errors",
    "--remote-debugging-port=0",
    "--remote-allow-origins=*",
)


def program() -> t.Optional[str]:
    """The browser's path, or None when this machine has none."""
    return next((path for path in map(shutil.which, PROGRAMS) if path), None)


class PageError(AssertionError):
    """A script in the page threw; the message is the error's."""


class Page:
    """One tab. Methods wait for what they start; the timeout is in seconds."""

    def __init__(self, socket_url: str) -> None:
        self._socket = websocket.create_connection(socket_url, timeout=60)
        self._ids = itertools.count(1)
        self.events: t.List[t.Dict[str, t.Any]] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, timeout: float = 60.0, **arguments: t.Any) -> t.Dict[str, t.Any]:
        """One command of the protocol; events that arrive meanwhile are kept in ``events``."""
        number = next(self._ids)
        self._socket.settimeout(timeout)
        self._socket.send(json.dumps({"id": number, "method": method, "params": arguments}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == number:
                if "error" in message:
                    raise PageError(f"{method}: {message['error'].get('message')}")
                return t.cast(t.Dict[str, t.Any], message.get("result", {}))
            self.events.append(message)

    def drain(self, seconds: float = 0.2) -> None:
        """Reads the events that are under way."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                self.events.append(json.loads(self._socket.recv()))
            except websocket.WebSocketTimeoutException:
                return

    def navigate(self, url: str, timeout: float = 30.0) -> None:
        """Goes to a page and waits until it has loaded."""
        self.events = [event for event in self.events if event.get("method") != "Page.loadEventFired"]
        answer = self.call("Page.navigate", url=url)
        if answer.get("errorText"):
            raise PageError(f"{url}: {answer['errorText']}")
        wait_until(self._loaded, timeout=timeout, what=f"{url} loaded")

    def _loaded(self) -> bool:
        self.drain(0.1)
        return any(event.get("method") == "Page.loadEventFired" for event in self.events)

    def evaluate(self, expression: str, timeout: float = 60.0) -> t.Any:
        """The JSON value of a JavaScript expression; promises are awaited. Raises ``PageError``."""
        answer = self.call(
            "Runtime.evaluate", timeout, expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        failure = answer.get("exceptionDetails")
        if failure:
            raise PageError(failure.get("exception", {}).get("description") or failure.get("text", "script failed"))
        return answer["result"].get("value")

    def console(self) -> t.List[str]:
        """What scripts and the browser itself wrote to the console so far."""
        self.drain()
        lines = []
        for event in self.events:
            if event.get("method") == "Runtime.consoleAPICalled":
                lines.append(
                    " ".join(
                        str(argument.get("value", argument.get("description", "")))
                        for argument in event["params"]["args"]
                    )
                )
            elif event.get("method") == "Log.entryAdded":
                lines.append(event["params"]["entry"]["text"])
        return lines

    def screenshot(self, path: Path) -> None:
        import base64

        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.call("Page.close", timeout=5)
        self._socket.close()


class Browser:
    def __init__(self, port: int) -> None:
        self.port = port

    def page(self, url: str = "about:blank") -> Page:
        """A new tab at ``url``."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/json/new?about:blank", method="PUT")
        with urllib.request.urlopen(request, timeout=30) as answer:
            page = Page(json.load(answer)["webSocketDebuggerUrl"])
        if url != "about:blank":
            page.navigate(url)
        return page


@contextlib.contextmanager
def browser(*, hosts: t.Optional[t.Mapping[str, str]] = None, flags: t.Sequence[str] = ()) -> t.Iterator[Browser]:
    """A browser of its own with an empty profile.

    ``hosts`` maps ``host`` or ``host:port`` to where it really is; every other name resolves to nothing, so that
    nothing leaves the machine. Certificates are not checked (``certificate()`` makes one).
    """
    path = program()
    if path is None:
        raise RuntimeError(f"no browser here: install one of {', '.join(PROGRAMS)}")
    profile = Path(tempfile.mkdtemp(prefix="wops-browser-"))
    rules = [f"MAP {name} {target}" for name, target in (hosts or {}).items()] + [
        "MAP * ~NOTFOUND",
        "EXCLUDE 127.0.0.1",
        "EXCLUDE localhost",
    ]
    words = [
        path,
        *FLAGS,
        f"--user-data-dir={profile}",
        f"--host-resolver-rules={', '.join(rules)}",
        *flags,
        "about:blank",
    ]
    environment = {**os.environ, "HOME": str(profile)}
    process = subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, start_new_session=True
    )
    try:
        port_file = profile / "DevToolsActivePort"
        port = wait_until(
            lambda: int(port_file.read_text().split()[0]), timeout=60, what="the browser's debugging port"
        )
        yield Browser(port)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # helpers of its session that outlived it
        shutil.rmtree(profile, ignore_errors=True)


def certificate(directory: Path, names: t.Sequence[str]) -> t.Tuple[Path, Path]:
    """A self-signed certificate for host names and addresses; the paths of certificate and key (PEM)."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    alternatives: t.List[x509.GeneralName] = []
    for entry in names:
        try:
            alternatives.append(x509.IPAddress(ipaddress.ip_address(entry)))
        except ValueError:
            alternatives.append(x509.DNSName(entry))
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = directory / "certificate.pem", directory / "key.pem"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths
