# SPDX-License-Identifier: GPL-3.0-or-later
"""What a readiness check takes for an answer."""

from __future__ import annotations

import typing as t

import pytest

from wheels_ops.services import gates


@pytest.mark.parametrize(
    ("body", "wanted", "right"),
    [
        ('{"status": "pass"}', {"status": "pass"}, True),
        ('{"status": "fail"}', {"status": "pass"}, False),
        ('{"checks": {"db": [{"ok": true}]}}', {"checks.db.0.ok": True}, True),
        ('{"checks": {"db": [{"ok": true}]}}', {"checks.db.0.ok": "true"}, True),
        ('{"checks": {"db": []}}', {"checks.db.0.ok": True}, False),
        ("not json", {"status": "pass"}, False),
        ("[]", {"status": "pass"}, False),
        ("anything", {}, True),
    ],
)
def test_body_predicates(body: str, wanted: t.Dict[str, t.Any], right: bool) -> None:
    assert (gates._json_mismatch(body, wanted) == "") is right
