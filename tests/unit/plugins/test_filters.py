# SPDX-License-Identifier: GPL-3.0-or-later
"""The filters of the playbooks and roles, called as Ansible calls them."""

from __future__ import annotations

import importlib
import sys
import typing as t

import pytest
from ansible.errors import AnsibleFilterError

from tests.support.collection import REPOSITORY


def call(name: str, *words: t.Any, **options: t.Any) -> t.Any:
    if str(REPOSITORY / "collections") not in sys.path:
        sys.path.append(str(REPOSITORY / "collections"))
    module = importlib.import_module(f"ansible_collections.wheels.ops.plugins.filter.{name}")
    return module.FilterModule().filters()[name](*words, **options)


def check(name: str, status: str) -> t.Dict[str, str]:
    return {"name": name, "status": status, "message": f"{name} is {status}."}


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ({"failed": True, "msg": "no route"}, "no route"),
        (
            {
                "msg": "One or more items failed",
                "results": [
                    {"failed": True, "msg": "a is full"},
                    {"failed": False, "msg": "fine"},
                    {"failed": True, "msg": "b is full"},
                    {"failed": True, "msg": "a is full"},
                    {"failed": True},
                ],
            },
            "a is full b is full",
        ),
        ({"results": [{"failed": True}], "msg": "items failed"}, "items failed"),
        ({"rc": 1}, "the task"),
        ("broken", "broken"),
        (None, "the task"),
    ],
)
def test_failure_reason_names_the_items_of_a_loop(result: t.Any, reason: str) -> None:
    assert call("failure_reason", result, "the task") == reason


def test_check_lines_gives_the_named_checks_in_the_order_of_the_report() -> None:
    checks = [check("disk", "ok"), check("redis", "critical"), check("cpu", "warning")]
    assert call("check_lines", checks, ["cpu", "redis"]) == ["redis: redis is critical.", "cpu: cpu is warning."]
    assert call("check_lines", checks, ["cpu"], status=True) == ["cpu: warning: cpu is warning."]


def test_verify_problems_is_empty_only_where_something_was_measured_and_all_is_well() -> None:
    deployed: t.Dict[str, t.Any] = {"drifted": [], "unfinished": "", "partly_rolled_back": [], "damaged": []}
    healthy = {"checks": [check("disk", "ok"), check("rls", "skipped")], "failing": [], "msg": "1 healthy"}
    assert call("verify_problems", healthy, deployed) == []
    nothing = {"checks": [check("rls", "skipped")], "failing": [], "msg": "Nothing was measured"}
    assert call("verify_problems", nothing, deployed) == ["Nothing was measured"]
    failing = {"checks": [check("disk", "unknown")], "failing": ["disk"], "msg": ""}
    everything = {
        "drifted": ["/a", "/b"],
        "unfinished": "one",
        "partly_rolled_back": [{"id": "zero", "files": {"/c": "/state/c"}}, {"id": "minus", "files": {}}],
        "damaged": [{"path": "/state/x"}],
    }
    problems = call("verify_problems", failing, everything)
    assert [line.split(" ")[0] for line in problems] == ["disk:", "files:", "files:", "files:", "/state/x"]
    assert "/a, /b" in problems[1] and "one" in problems[3]
    assert "zero" in problems[2] and "/c (original: /state/c)" in problems[2] and "wheels_ops_force" in problems[2]


@pytest.mark.parametrize(
    ("statuses", "options", "healthy", "words"),
    [
        (["ok"], {}, True, "The backend answers again."),
        (["warning"], {}, True, "Warnings: http0 is warning."),
        (["skipped"], {}, True, "http0 is skipped."),
        (["critical"], {}, False, "But it is not healthy: http0 is critical."),
        (["unknown"], {}, False, "But it is not healthy: http0 is unknown."),
        (["critical"], {"failing_before": ["http0"]}, False, "either (http0)."),
        (["ok"], {"restart_error": "no unit"}, False, "failed: no unit"),
        (["critical"], {"check_mode": True}, True, "The backend answers again."),
    ],
)
def test_rollback_verdict(statuses: t.List[str], options: t.Dict[str, t.Any], healthy: bool, words: str) -> None:
    checks = [check(f"http{number}", status) for number, status in enumerate(statuses)]
    verdict = call("rollback_verdict", checks, **{"failing_before": [], **options})
    assert verdict["healthy"] is healthy
    assert words in verdict["message"]


def test_size_in_bytes_reads_as_the_modules_do() -> None:
    assert call("size_in_bytes", "50MB") == 50_000_000
    assert call("size_in_bytes", "4K") == 4096
    with pytest.raises(AnsibleFilterError, match="log_max_size must be .*, got .much."):
        call("size_in_bytes", "much", "log_max_size")


def test_ops_tokens_leaves_out_comments_and_short_texts() -> None:
    token = "0123456789abcdef"
    assert call("ops_tokens", f"\ufeff# a comment of many characters\nshort\n {token} \n") == [token]


def test_regressions_compare_with_before() -> None:
    def measured(name: str, status: str, value: t.Any = None, unit: str = "ms") -> t.Dict[str, t.Any]:
        return {"name": name, "status": status, "value": value, "unit": unit}

    before = [
        measured("http", "ok", 480),
        measured("cpu", "ok", 60, "%"),
        measured("disk", "critical", 99),
        measured("rls", "ok"),
        measured("tts", "skipped"),
        measured("memory", "ok", 50, "%"),
        measured("websocket", "ok", 400),
    ]
    after = [
        measured("http", "warning", 568),  # over its limit, and hardly slower
        measured("cpu", "warning", 90, "%"),
        measured("disk", "critical", 99),
        measured("rls", "critical"),
        measured("tts", "critical"),
        measured("memory", "warning", 90, "%"),
        measured("websocket", "critical", 401),
    ]
    assert call("regressions", after, before, ["memory"]) == ["cpu", "rls", "websocket"]
    assert call("regressions", before, before) == []
