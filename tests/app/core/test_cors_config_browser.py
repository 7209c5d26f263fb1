# SPDX-License-Identifier: GPL-3.0-or-later
"""The policy as a real browser sees it, from a page of ours and from a foreign one; and the oracle against that
browser.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import ssl
import subprocess
import threading
import typing as t
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.app.core.cors import oracle
from tests.support import browser as browsers
from tests.support.backend_env import BACKEND_PYTHON
from tests.support.patched_tree import patched_tree
from tests.support.waiting import free_port, port_open, wait_until

pytestmark = pytest.mark.skipif(
    browsers.program() is None, reason="this machine has no Chromium (Debian: apt-get install chromium)"
)
OWN, PREVIEW, FOREIGN, API = (
    "https://wheelsandwins.com",
    "https://deploy-preview-3--wheels-wins-landing-page.netlify.app",
    "https://evil.example",
    "https://pam-backend.test",
)
HOSTS = [url.removeprefix("https://") for url in (OWN, PREVIEW, FOREIGN)]

# One request of a page: what the script got to see, or the error that hides everything.
ASK = """(async (url, options) => {
  try {
    const answer = await fetch(url, options);
    return {status: answer.status, id: answer.headers.get('x-request-id'), hidden: answer.headers.get('x-hidden'), body: await answer.text()};
  } catch (error) { return {error: error.name}; }
})"""
SOCKET = """(url => new Promise(done => {
  const socket = new WebSocket(url); let said = null;
  socket.onmessage = event => { said = event.data; };
  socket.onclose = event => done({said, code: event.code});
}))"""


@dataclass
class Scene:
    chromium: browsers.Browser

    def page(self, origin: str) -> browsers.Page:
        return self.chromium.page(origin + "/")

    def ask(self, page: browsers.Page, path: str, **options: t.Any) -> t.Dict[str, t.Any]:
        return t.cast(t.Dict[str, t.Any], page.evaluate(f"{ASK}({json.dumps(API + path)}, {json.dumps(options)})"))


#: What ``/v/N`` answers with: header fields, and those of the preflight with its status.
ANSWERS: t.List[t.Tuple[t.List[t.Tuple[str, str]], int, t.List[t.Tuple[str, str]]]] = []


class Site(http.server.BaseHTTPRequestHandler):
    """The pages of every host, and answers that a test chooses."""

    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        pairs: t.Sequence[t.Tuple[str, str]] = []
        status = 200
        if self.path.startswith("/v/"):
            actual, status, preflight = ANSWERS[int(self.path.split("/")[2])]
            pairs, status = (preflight, status) if self.command == "OPTIONS" else (actual, 200)
        body = b"<!doctype html><title>page</title>"
        self.send_response(status)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", "0" if status in (204, 304) else str(len(body)))
        self.send_header("Cache-Control", "no-store")
        for name, value in pairs:
            self.send_header(name, value)
        self.end_headers()
        if status not in (204, 304):
            self.wfile.write(body)

    do_GET = do_OPTIONS = do_PUT = do_POST = answer

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
        return


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Scene]:
    tree = patched_tree(tmp_path_factory.mktemp("browser"), "core/cors_config.py")
    names = [*HOSTS, API.removeprefix("https://"), "other.test"]
    certificate, key = browsers.certificate(tree.directory, names)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    site = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    site.socket = context.wrap_socket(site.socket, server_side=True, do_handshake_on_connect=False)
    site.daemon_threads = True
    threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    port = free_port()
    program = Path(__file__).with_name("cors") / "browser_program.py"
    api = subprocess.Popen(
        [str(BACKEND_PYTHON), str(program), str(port), str(certificate), str(key)],
        env=tree.environment({"ENVIRONMENT": "production"}),
        stderr=subprocess.DEVNULL,
    )
    where = {name: f"127.0.0.1:{site.server_address[1]}" for name in [*HOSTS, "other.test"]}
    try:
        wait_until(lambda: port_open(port), what="the API")
        with browsers.browser(hosts={**where, API.removeprefix("https://"): f"127.0.0.1:{port}"}) as chromium:
            yield Scene(chromium)
    finally:
        api.terminate()
        api.wait(10)
        site.shutdown()
        site.server_close()


@pytest.fixture(params=[OWN, PREVIEW])
def own(request: pytest.FixtureRequest, scene: Scene) -> t.Iterator[browsers.Page]:
    page = scene.page(request.param)
    yield page
    page.close()


@pytest.fixture
def foreign(scene: Scene) -> t.Iterator[browsers.Page]:
    page = scene.page(FOREIGN)
    yield page
    page.close()


def test_a_page_of_ours_may_do_everything(scene: Scene, own: browsers.Page) -> None:
    assert scene.ask(own, "/api/login", method="POST", credentials="include")["status"] == 200
    simple = scene.ask(own, "/api/x", credentials="include")
    assert (
        simple["status"] == 200
        and json.loads(simple["body"])["cookie"] == "secret"
        and simple["id"] == "42"
        and simple["hidden"] is None
    )
    headers = {
        "Content-Type": "application/json",
        "Authorization": "Bearer t",
        "apikey": "k",
        "X-Client-Info": "supabase-js/2",
    }
    for method in ("POST", "PUT", "DELETE"):
        preflighted = scene.ask(own, "/api/x", method=method, credentials="include", headers=headers)
        assert preflighted["status"] == 200 and json.loads(preflighted["body"]) == {
            "cookie": "secret",
            "method": method,
        }
    assert scene.ask(own, "/api/x")["status"] == 200, "without credentials as well"


@pytest.mark.parametrize(
    ("path", "status"), [("/api/boom", 500), ("/api/denied", 401), ("/nowhere", 404), ("/api/redirect", 200)]
)
def test_a_page_of_ours_can_read_errors_and_follow_redirects(
    scene: Scene, own: browsers.Page, path: str, status: int
) -> None:
    assert scene.ask(own, path, credentials="include", headers={"X-Requested-With": "x"}).get("status") == status


def test_a_page_of_ours_is_still_bound_to_the_lists(scene: Scene, own: browsers.Page) -> None:
    assert scene.ask(own, "/api/x", headers={"X-Evil": "1"}) == {"error": "TypeError"}
    assert scene.ask(own, "/api/x", method="PURGE") == {"error": "TypeError"}


def test_a_foreign_page_reads_nothing(scene: Scene, foreign: browsers.Page) -> None:
    for options in ({}, {"credentials": "include"}, {"method": "POST", "credentials": "include", "body": "x"}):
        for path in ("/api/x", "/api/boom", "/nowhere", "/api/redirect"):
            assert scene.ask(foreign, path, **options) == {"error": "TypeError"}, (path, options)


def test_a_foreign_page_cannot_even_send_what_needs_a_preflight(scene: Scene, foreign: browsers.Page) -> None:
    page = scene.page(OWN)
    before = json.loads(scene.ask(page, "/api/calls")["body"])
    for options in (
        {"method": "PUT"},
        {"method": "DELETE", "credentials": "include"},
        {"method": "POST", "headers": {"Content-Type": "application/json"}},
    ):
        assert scene.ask(foreign, "/api/x", **options) == {"error": "TypeError"}
    after = json.loads(scene.ask(page, "/api/calls")["body"])
    page.close()
    assert after == before


def test_a_sandboxed_frame_is_foreign(scene: Scene) -> None:
    """Its origin is ``null``, on a page of ours too."""
    page = scene.page(OWN)
    script = (
        f"fetch('{API}/api/x', {{credentials: 'include'}}).then(() => 'read', () => 'refused').then(word =>"
        " parent.postMessage(word, '*'))"
    )
    found = page.evaluate(f"""new Promise(done => {{
      addEventListener('message', event => done(event.data));
      const frame = document.createElement('iframe');
      frame.sandbox = 'allow-scripts';
      frame.srcdoc = `<script>{script}</script>`;
      document.body.append(frame);
    }})""")
    page.close()
    assert found == "refused"


def test_websockets_follow_the_same_origins(scene: Scene, own: browsers.Page, foreign: browsers.Page) -> None:
    url = json.dumps(API.replace("https", "wss") + "/ws")
    assert own.evaluate(f"{SOCKET}({url})") == {"said": "hello", "code": 1000}
    assert foreign.evaluate(f"{SOCKET}({url})") == {"said": None, "code": 1006}


def origin_values() -> t.List[str]:
    """Values of Access-Control-Allow-Origin, after the list of WPT's cors/origin.htm: exact, nearly exact, wildcards,
    lists, junk.
    """
    host = OWN.removeprefix("https://")
    exact = [OWN, f" {OWN}", f"{OWN} ", f"{OWN}\t", "*", " *", "* "]
    nearly = [
        f"{OWN}/",
        OWN.upper(),
        OWN.replace("https", "HTTPS"),
        f"http://{host}",
        f"//{host}",
        f"://{host}",
        host,
        f"ftp://{host}",
        f"https://user@{host}",
    ]
    suffixed = [OWN + suffix for suffix in (":443", ":", ":8443", "?", "#", "/path", ".", ";")]
    lists = [f"{OWN}, {OWN}", f"{OWN}, *", f"*, {OWN}", f"{OWN},", f",{OWN}", f"{OWN} {OWN}"]
    quoted = [f'"{OWN}"', f"<{OWN}>", f"'{OWN}'"]
    junk = ["**", "* *", "null", "NULL", "", ".", "..*", f"*.{host}", "https://*", "https", "https:", "none", "true"]
    return [*exact, *nearly, *suffixed, *lists, *quoted, *junk]


@pytest.mark.parametrize("credentials", [True, False])
def test_the_oracle_agrees_with_the_browser(scene: Scene, credentials: bool) -> None:
    """Otherwise the vectors would be judged by a browser that does not exist."""
    ANSWERS.clear()
    for value in origin_values():
        for flag in ("true", "True", "false", None):
            pairs = [
                ("Access-Control-Allow-Origin", value),
                *([("Access-Control-Allow-Credentials", flag)] if flag else []),
            ]
            ANSWERS.append((pairs, 200, pairs))
    good = [("Access-Control-Allow-Origin", OWN), ("Access-Control-Allow-Credentials", "true")]
    simple = len(ANSWERS)
    for status in (200, 204, 299, 301, 304, 400, 403, 404, 500):
        ANSWERS.append(
            (
                good,
                status,
                [
                    *good,
                    ("Access-Control-Allow-Methods", "PUT"),
                    ("Access-Control-Allow-Headers", "x-one, authorization"),
                ],
            )
        )
    for methods in ("PUT", "put", "GET, PUT", "*", "PUT,", ",PUT", "PU T", "", "POST", "PUT;", None):
        # Not "*" alone: Chromium so far only warns that it will not cover Authorization, as the standard has it.
        for names in (
            "x-one, authorization",
            "X-ONE,AUTHORIZATION",
            "*, authorization",
            "x-one",
            "x one, authorization",
            "x-one,,authorization",
            "",
            None,
        ):
            more = [
                *([("Access-Control-Allow-Methods", methods)] if methods is not None else []),
                *([("Access-Control-Allow-Headers", names)] if names is not None else []),
            ]
            ANSWERS.append((good, 200, [*good, *more]))
    ANSWERS.append(
        (
            good,
            200,
            [
                *good,
                *good,
                ("Access-Control-Allow-Methods", "PUT"),
                ("Access-Control-Allow-Headers", "x-one, authorization"),
            ],
        )
    )
    ANSWERS.append(
        (
            good,
            200,
            [
                *good,
                ("Access-Control-Allow-Methods", "PUT"),
                ("Access-Control-Allow-Headers", "x-one"),
                ("Access-Control-Allow-Headers", "authorization"),
            ],
        )
    )
    page = scene.page(OWN)
    mode = "include" if credentials else "omit"
    seen = page.evaluate(
        f"""(async () => {{
      const found = [];
      for (let number = 0; number < {len(ANSWERS)}; number += 1) {{
        const options = {{credentials: '{mode}', cache: 'no-store', redirect: 'error'}};
        if (number >= {simple}) {{ options.method = 'PUT'; options.headers = {{'X-One': '1', 'Authorization': 'x'}}; }}
        found.push(await fetch('https://other.test/v/' + number, options).then(() => true, () => false));
      }}
      return found;
    }})()""",
        timeout=120,
    )
    page.close()
    differ = []
    for number, (actual, status, preflight) in enumerate(ANSWERS):
        expected = oracle.cors_check(OWN, credentials, actual)
        if number >= simple:
            expected = expected and oracle.preflight_check(
                OWN, credentials, "PUT", ["x-one", "authorization"], status, preflight
            )
        if expected != seen[number]:
            differ.append(
                (number, actual if number < simple else preflight, status, f"browser {seen[number]}, oracle {expected}")
            )
    assert not differ, differ
    assert any(seen) and not all(seen)


def test_the_browsers_console_names_the_policy_as_the_reason(scene: Scene, foreign: browsers.Page) -> None:
    with contextlib.suppress(AssertionError):
        scene.ask(foreign, "/api/x", credentials="include")
    assert any("CORS policy" in line for line in foreign.console()), foreign.console()
