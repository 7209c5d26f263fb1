# SPDX-License-Identifier: GPL-3.0-or-later
"""The one shape of a result, and an error that shows no secret."""

from __future__ import annotations

import json
import os

from wheels_ops.core.results import OpsError, Result, escape_names


def test_result_has_the_same_keys_whatever_happened() -> None:
    """In check mode, in a real run, and where nothing was done; warnings go another way."""
    shape = {"changed", "before", "after", "actions", "msg", "diff"}
    assert set(Result().as_dict()) == shape
    changed = Result(changed=True, actions=[{"action": "remove", "target": "/a", "changed": True}], warnings=["old"])
    assert set(changed.as_dict()) == shape


def test_result_merges_what_is_its_own() -> None:
    assert Result(extra={"bytes_freed": 5}).as_dict()["bytes_freed"] == 5


def test_results_share_nothing() -> None:
    first, second = Result(), Result()
    first.actions.append({"action": "remove", "target": "/a", "changed": True})
    first.extra["engine"] = "edge"
    assert (second.actions, second.extra) == ([], {})


def test_error_is_one_sentence_with_its_hint_and_without_secrets() -> None:
    error = OpsError("redis://:word@10.0.0.1 refuses.", hint="Try redis://:word@10.0.0.2.", state="down")
    assert "word" not in f"{error} {error.message} {error.hint}" and "10.0.0.2" in str(error)
    assert str(error) == f"{error.message} {error.hint}" and error.details == {"state": "down"}
    assert str(OpsError("It is down.")) == "It is down."


def test_names_that_are_not_utf8_are_escaped_wherever_they_stand() -> None:
    name = os.fsdecode(b"caf\xe9")
    shown = escape_names({name: [name, ("\ud800", 1, None)], "plain": "caf\u00e9"})
    assert shown == {"caf\\xe9": ["caf\\xe9", ["\\ud800", 1, None]], "plain": "caf\u00e9"}
    json.dumps(shown, ensure_ascii=False).encode()
