# SPDX-License-Identifier: GPL-3.0-or-later
"""The emergency procedure for a backend that reaches its database through Supabase's REST interface alone."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import typing as t
from pathlib import Path

from tests.support.health_app import health_app
from tests.support.waiting import wait_until

QUICK = {"HEALTH_CHECK_INTERVAL": "0.3", "HEALTH_CHECK_TIMEOUT": "0.5", "MONITORING_INTERVAL": "0.5"}
KEY = "anon-key-of-the-project"


class Supabase:
    """PostgREST's answers by table, (status, code); every other table is there. ``down`` answers as it does without a
    database.
    """

    def __init__(self) -> None:
        self.tables: t.Dict[str, t.Tuple[int, str]] = {}
        self.down = False
        self.asked: t.List[t.Tuple[str, str]] = []
        self.url = ""

    def answer(self, method: str, path: str, key: str) -> t.Tuple[int, t.Any]:
        self.asked.append((method, path))
        table = path.partition("?")[0].rpartition("/")[2]
        status, code = self.tables.get(table, (200, ""))
        if key != KEY:
            status, code = 401, ""
        elif self.down:
            status, code = 503, "PGRST001"
        return status, {"code": code, "message": "as PostgREST says it"} if status >= 400 else []


@contextlib.contextmanager
def supabase() -> t.Iterator[Supabase]:
    project = Supabase()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, document = project.answer("GET", self.path, self.headers.get("apikey", ""))
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_words: t.Any) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        project.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield project
        server.shutdown()


def requests_of(state: Path) -> t.Set[str]:
    return {json.loads(path.read_text())["kind"] for path in (state / "requests").glob("*.json")}


def test_the_rest_interface_is_watched_tried_again_and_read_only_meanwhile(tmp_path: Path) -> None:
    with supabase() as primary, supabase() as replica:
        addresses = {"SUPABASE_URL": primary.url, "SUPABASE_REPLICA_URL": replica.url, "SUPABASE_KEY": KEY}
        with health_app(QUICK, addresses, state=tmp_path, DATABASE_RESTART_AFTER="1") as app:
            wait_until(lambda: "database:connection" in app.health()["checks"], what="the first check")
            assert app.check("database:connection") == "pass"
            assert app.health()["sections"]["database"]["reached_by"] == "rest"
            primary.down = True
            wait_until(lambda: app.health()["sections"]["database"]["state"] == "read_only", timeout=30)
            assert app.request("GET", "/readyz").status == 200, "reads work: traffic may come"
            assert app.health()["sections"]["database"]["attempts"] >= 4
            wait_until(lambda: requests_of(tmp_path) == {"alert", "restart"}, timeout=30, what="alert and restart")
            replica.down = True
            wait_until(lambda: app.health()["sections"]["database"]["state"] == "down", timeout=30)
            primary.down = False
            wait_until(lambda: app.health()["sections"]["database"]["state"] == "ok", timeout=30)
            assert KEY not in app.logged()
        assert {method for method, _path in primary.asked} == {"GET"}
        assert all("limit=0" in path for _method, path in primary.asked), "no row of a user is asked for"


def test_missing_tables_and_recursive_policies_are_named(tmp_path: Path) -> None:
    with supabase() as project:
        project.tables = {
            "affiliate_sales": (404, "PGRST205"),
            "group_trips": (500, "42P17"),
            "user_wishlists": (401, "42501"),
        }
        tables = "affiliate_sales,group_trips,user_wishlists"
        address = {"SUPABASE_URL": project.url, "SUPABASE_KEY": KEY, "HEALTH_EXPECTED_TABLES": tables}
        with health_app(QUICK, address, state=tmp_path) as app:
            wait_until(lambda: "database:policies" in app.health()["checks"], what="the first check")
            checks = app.health()["checks"]
            assert checks["database:connection"][0]["status"] == "pass"
            assert checks["database:tables"][0]["output"] == "missing tables: affiliate_sales"
            assert checks["database:policies"][0]["output"] == "infinite recursion in the policies of group_trips"


def test_a_refused_key_is_no_healthy_database(tmp_path: Path) -> None:
    with supabase() as project:
        address = {"SUPABASE_URL": project.url, "SUPABASE_SERVICE_ROLE_KEY": "another"}
        with health_app(QUICK, address, state=tmp_path) as app:
            wait_until(lambda: "database:connection" in app.health()["checks"], what="the first check")
            assert app.check("database:connection") == "fail"


def test_without_either_nothing_is_claimed(tmp_path: Path) -> None:
    with health_app(QUICK, state=tmp_path) as app:
        wait_until(lambda: "neither DATABASE_URL nor SUPABASE_URL" in json.dumps(app.health(), default=str))
        assert "database:connection" not in app.health()["checks"]
