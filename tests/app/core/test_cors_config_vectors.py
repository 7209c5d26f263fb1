# SPDX-License-Identifier: GPL-3.0-or-later
"""Every conformance vector against the layer under real uvicorn, on three generations of Starlette.

Another file of vectors in the same form: ``WHEELS_OPS_CORS_VECTORS=/path/to/vectors.json``.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import http.client
import json
import os
import subprocess
import typing as t
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.app.core.cors import derived, oracle
from tests.support.backend_env import BACKEND_PYTHON, REPOSITORY
from tests.support.patched_tree import Tree, patched_tree
from tests.support.waiting import free_port, port_open, wait_until

GIVEN = Path(os.environ.get("WHEELS_OPS_CORS_VECTORS") or Path(__file__).with_name("cors") / "given.json")
#: The oldest supported, the incident release's (which the backend's environment has), and the newest.
STARLETTE = ("0.37.2", "0.47.3", "1.10.0")


def starlette(version: str) -> Path:
    """A directory with that version alone, installed once."""
    target = REPOSITORY / ".cache" / f"starlette-{version}"
    target.parent.mkdir(exist_ok=True)
    with open(target.parent / f"starlette-{version}.lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (target / f"starlette-{version}.dist-info").is_dir():
            uv = REPOSITORY / ".venv" / "bin" / "uv"
            subprocess.run(
                [
                    str(uv),
                    "pip",
                    "install",
                    "-q",
                    "-p",
                    str(BACKEND_PYTHON),
                    "--target",
                    str(target),
                    "--no-deps",
                    f"starlette=={version}",
                ],
                check=True,
            )
    return target


def load() -> t.Dict[str, t.Any]:
    """The given vectors and the derived ones."""
    data = t.cast(t.Dict[str, t.Any], json.loads(GIVEN.read_text(encoding="utf-8")))
    data["vectors"] += derived.vectors()
    data["config_vectors"] += derived.config_vectors()
    data["websocket_vectors"] += derived.websocket_vectors()
    return data


@dataclass
class Served:
    data: t.Dict[str, t.Any]
    port: int
    version: str

    def send(
        self, vector: str, method: str, path: str, pairs: t.Sequence[t.Sequence[str]]
    ) -> t.Tuple[int, t.List[t.Tuple[str, str]], str]:
        """One request with exactly these header fields; status, header fields and body of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in [("Host", "api.test"), ("X-Vector", vector), *pairs]:
            connection.putheader(name, value.encode("latin-1"))
        connection.endheaders()
        answer = connection.getresponse()
        body = answer.read().decode("utf-8", "replace")
        pairs_back = list(answer.getheaders())
        connection.close()
        return answer.status, pairs_back, body


@contextlib.contextmanager
def serving(directory: Path, version: str, layer: str = "ours") -> t.Iterator[Served]:
    tree = patched_tree(directory, "core/cors_config.py")
    data = load()
    vectors = tree.directory / "vectors.json"
    vectors.write_text(json.dumps(data), encoding="utf-8")
    port = free_port()
    program = Path(__file__).with_name("cors") / "server_program.py"
    environment = tree.environment(ahead=[starlette(version)])
    with open(tree.directory / "server.log", "wb") as log:
        process = subprocess.Popen(
            [str(BACKEND_PYTHON), str(program), str(port), str(vectors), layer],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_until(lambda: port_open(port) or process.poll() is not None, what="the server of the vectors")
        assert process.poll() is None, (tree.directory / "server.log").read_text()
        yield Served(data, port, version)
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="module", params=STARLETTE)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Served]:
    with serving(tmp_path_factory.mktemp("cors"), request.param) as running:
        yield running


def values(pairs: t.Sequence[t.Tuple[str, str]], name: str) -> t.List[str]:
    return [value for key, value in pairs if key.lower() == name]


def listed(pairs: t.Sequence[t.Tuple[str, str]], name: str) -> t.Set[str]:
    return {part.strip().lower() for value in values(pairs, name) for part in value.split(",") if part.strip()}


def shortcomings(
    vector: t.Mapping[str, t.Any], status: int, pairs: t.List[t.Tuple[str, str]], body: str
) -> t.List[str]:
    """Every way in which an answer falls short of a vector (the strictest level: verdict, leaks, status, lists)."""
    expect = vector["expect"]
    request = vector["request"]
    wrong = []
    if expect.get("status") is not None and status != expect["status"]:
        wrong.append(f"status {status}, not {expect['status']}")
    if "status_in" in expect and status not in expect["status_in"]:
        wrong.append(f"status {status}, not in {expect['status_in']}")
    if status in expect.get("status_not", ()):
        wrong.append(f"status {status}")
    verdict = oracle.verdict(request["method"], [tuple(pair) for pair in request["headers"]], status, pairs)
    if expect["browser"] != "any" and verdict != expect["browser"]:
        wrong.append(f"the browser's verdict is {verdict}, not {expect['browser']}")
    for key, name in (
        ("acao", "access-control-allow-origin"),
        ("acac", "access-control-allow-credentials"),
        ("acapn", "access-control-allow-private-network"),
    ):
        if key in expect and values(pairs, name) != [expect[key]]:
            wrong.append(f"{name}: {values(pairs, name)}")
    if "max_age" in expect and values(pairs, "access-control-max-age") != [str(expect["max_age"])]:
        wrong.append(f"max-age: {values(pairs, 'access-control-max-age')}")
    wrong += [f"{name} is there" for name in expect.get("absent", ()) if values(pairs, name)]
    wrong += [
        f"{name}: {len(values(pairs, name))} of it"
        for name in expect.get("single", ())
        if len(values(pairs, name)) != 1
    ]
    for key, name in (("aceh", "expose-headers"), ("acah", "allow-headers"), ("acam", "allow-methods")):
        missing = {entry.lower() for entry in expect.get(f"{key}_includes", ())} - listed(
            pairs, f"access-control-{name}"
        )
        wrong += [f"{name} lacks {sorted(missing)}"] if missing else []
    missing = {entry.lower() for entry in expect.get("vary_includes", ())} - listed(pairs, "vary")
    wrong += [f"vary lacks {sorted(missing)}"] if missing else []
    if "vary_is" in expect and values(pairs, "vary") != [expect["vary_is"]]:
        wrong.append(f"vary: {values(pairs, 'vary')}")
    said = " ".join([body, *(f"{name}: {value}" for name, value in pairs)]).lower()
    wrong += [f"echoes {word}" for word in expect.get("not_echo", ()) if word in said.replace("connection:", "")]
    if (
        expect.get("body_empty_or_text")
        and body
        and not (values(pairs, "content-type") or [""])[0].startswith("text/plain")
    ):
        wrong.append("body is not text")
    return wrong


def judged(served: Served) -> t.Dict[str, t.List[str]]:
    """What fell short, by vector."""
    found = {}
    for vector in served.data["vectors"]:
        request = vector["request"]
        found[vector["id"]] = shortcomings(
            vector, *served.send(vector["id"], request["method"], request["path"], request["headers"])
        )
    return {number: wrong for number, wrong in found.items() if wrong}


def test_all_request_vectors(served: Served) -> None:
    failed = judged(served)
    assert not failed, (
        f"starlette {served.version}, {len(served.data['vectors'])} vectors: {json.dumps(failed, indent=1)}"
    )


def test_the_vectors_find_what_starlettes_own_middleware_lacks(tmp_path: Path) -> None:
    """The runner is worth something only if it can fail: the incident release's middleware, with the
    same policy, does.
    """
    with serving(tmp_path, "0.47.3", "starlette") as served:
        failed = judged(served)
    given = [
        number
        for number in failed
        if number in {vector["id"] for vector in served.data["vectors"][: -len(derived.vectors())]}
    ]
    print(f"Starlette 0.47.3 misses {len(given)} of the given and {len(failed) - len(given)} of the derived vectors")
    if "WHEELS_OPS_CORS_VECTORS" not in os.environ:
        assert {"C25", "D11", "F02", "E02"} <= set(failed)


def test_no_legitimate_preflight_gets_an_error(served: Served) -> None:
    """Of all OPTIONS requests with a 4xx, none has an origin, method and headers that the policy lists."""
    refused = collections.Counter()  # type: collections.Counter[str]
    for vector in served.data["vectors"]:
        if vector["request"]["method"] == "OPTIONS" and vector["expect"]["browser"] == "allow":
            status, _, _ = served.send(vector["id"], "OPTIONS", vector["request"]["path"], vector["request"]["headers"])
            refused[str(status)] += status >= 400
    assert sum(refused.values()) == 0, refused


def test_websocket_vectors(served: Served) -> None:
    upgrade = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ]
    failed = {}
    for vector in served.data["websocket_vectors"]:
        pairs = vector["handshake"]
        connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
        connection.putrequest("GET", "/ws", skip_host=True, skip_accept_encoding=True)
        for name, value in [("Host", "api.test"), ("X-Vector", "ws"), *upgrade, *pairs]:
            connection.putheader(name, value.encode("latin-1"))
        connection.endheaders()
        status = connection.getresponse().status
        connection.close()
        if status != {"accept": 101, "close_403_before_accept": 403}[vector["expect"]]:
            failed[vector["id"]] = (pairs, status)
    assert not failed


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return patched_tree(tmp_path_factory.mktemp("cors"), "core/cors_config.py")


def test_config_vectors(tree: Tree) -> None:
    data = load()
    program = """
import json, sys
from app.core.cors_config import CORSPolicy, CORSPolicyError
data = json.load(open(sys.argv[1]))
found = {}
for vector in data["config_vectors"]:
    try:
        CORSPolicy.from_mapping({**data["policy"], **vector["override"]})
        found[vector["id"]] = ["accept", ""]
    except CORSPolicyError as error:
        found[vector["id"]] = ["reject_at_startup", str(error)]
print(json.dumps(found))
"""
    path = tree.directory / "config.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    found = tree.json(program, str(path))
    wrong = {
        vector["id"]: (vector["override"], found[vector["id"]])
        for vector in data["config_vectors"]
        if found[vector["id"]][0] != vector["expect"]
    }
    assert not wrong, json.dumps(wrong, indent=1)
    assert all("\n" not in text and len(text) > 20 for kind, text in found.values() if kind == "reject_at_startup"), (
        "one clear line each"
    )


@pytest.mark.parametrize(
    "bad", ["*", "http://shop.example", "https://shop.example/", "shop.example", "https://Shop.example", "null"]
)
def test_a_bad_additional_origin_stops_the_start_with_one_line(tree: Tree, bad: str) -> None:
    done = tree.run(
        "import app.core.cors_config", check=False, env={"ADDITIONAL_CORS_ORIGINS": f"https://good.example,{bad}"}
    )
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1 and "ADDITIONAL_CORS_ORIGINS" in done.stderr, done.stderr


def test_fail_open_start_drops_only_the_bad_origin(tree: Tree) -> None:
    program = (
        "import json; from app.core.cors_config import cors_config as c; print(json.dumps([c.origins,"
        " c.config_problems]))"
    )
    origins, problems = tree.json(
        program,
        env={"ADDITIONAL_CORS_ORIGINS": "https://good.example, http://bad.example", "CORS_FAIL_OPEN_START": "true"},
    )
    assert "https://good.example" in origins and "http://bad.example" not in origins and len(problems) == 1
    assert any(line["level"] == "error" and "bad.example" in line.get("problem", "") for line in tree.logged())


_ANSWER = """
import asyncio, json
from app.core.cors_config import CORSMiddleware
asked = [(b"origin", b"https://wheelsandwins.com"), (b"access-control-request-method", b"POST")]
asked += [(b"access-control-request-headers", b"HEADERS")]
sent = []
async def send(message):
    sent.append(message)
scope = {"type": "http", "method": "OPTIONS", "path": "/", "headers": asked}
asyncio.run(CORSMiddleware(None)(scope, None, send))
print(json.dumps([sent[0]["status"], {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}]))
"""


def test_headers_of_a_tracing_library_are_allowed_where_they_are_listed(tree: Tree) -> None:
    """A front end that begins to send them must not be the incident again."""
    program = _ANSWER.replace("HEADERS", "baggage,content-type,sentry-trace,traceparent")
    assert tree.json(program)[0] == 403
    status, headers = tree.json(program, env={"ADDITIONAL_CORS_HEADERS": "traceparent, Baggage,sentry-trace, apikey"})
    assert status == 200
    allowed = [name.strip().lower() for name in headers["access-control-allow-headers"].split(",")]
    assert {"traceparent", "baggage", "sentry-trace", "content-type"} <= set(allowed)
    assert allowed.count("apikey") == 1


@pytest.mark.parametrize("bad", ["*", "cookie", "sec-fetch-site", "two words", "x:y"])
def test_a_bad_additional_header_stops_the_start_with_one_line(tree: Tree, bad: str) -> None:
    done = tree.run("import app.core.cors_config", check=False, env={"ADDITIONAL_CORS_HEADERS": f"traceparent,{bad}"})
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1 and "ADDITIONAL_CORS_HEADERS" in done.stderr, done.stderr
    found = tree.json(
        "import json; from app.core.cors_config import cors_config as c; print(json.dumps(c.allowed_headers))",
        env={"ADDITIONAL_CORS_HEADERS": f"traceparent,{bad}", "CORS_FAIL_OPEN_START": "true"},
    )
    assert "traceparent" in found and bad not in found
