# SPDX-License-Identifier: GPL-3.0-or-later
"""The system endpoints answer as the application's OpenAPI document says, whatever schemathesis sends to them."""

from __future__ import annotations

import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from tests.support.health_app import TOKEN, HealthApp, health_app

#: Answers that say that it could not be done (503) are documented; a 500 is not, and so a finding.
CHECKS = (
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
)


@pytest.fixture(scope="module")
def app() -> t.Iterator[HealthApp]:
    with health_app() as running:
        yield running


@pytest.mark.parametrize("token", ["", TOKEN], ids=["anonymous", "operator"])
def test_answers_are_those_of_the_document(app: HealthApp, tmp_path: Path, token: str) -> None:
    words = [
        str(Path(sys.executable).with_name("schemathesis")),
        "run",
        f"{app.url}/openapi.json",
        "--include-path-regex",
        "^/api/v1/system",
        "--phases",
        "examples,coverage,fuzzing",
        "--checks",
        ",".join(CHECKS),
        "--max-examples",
        "5",
        "--generation-deterministic",
        "--no-shrink",
        *(["--header", f"X-Ops-Token: {token}"] if token else []),
    ]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert app.request("GET", "/livez").status == 200
    assert "Internal error" not in app.logged()


def test_the_document_names_each_route_with_who_may(app: HealthApp) -> None:
    paths = app.request("GET", "/openapi.json").json()["paths"]
    ours = {path: methods for path, methods in paths.items() if path.startswith("/api/v1/system")}
    assert len(ours) == 15
    for path, methods in ours.items():
        for method, operation in methods.items():
            assert "422" not in operation["responses"], f"{method} {path}: what is not valid is a 400"
            public = path.endswith("/health") and "/logs/" not in path or "/dashboard" in path
            assert ("security" in operation) is not public, f"{method} {path}"
            assert public or {"401", "403", "429"} <= set(operation["responses"]), f"{method} {path}"
