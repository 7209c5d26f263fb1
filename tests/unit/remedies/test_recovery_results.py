# SPDX-License-Identifier: GPL-3.0-or-later
"""A remedy succeeded where the checks pass afterwards, not where it returned."""

from __future__ import annotations

import pytest

from wheels_ops.remedies.recovery_results import RecoveryResult, brief, verify


@pytest.mark.parametrize(
    ("changed", "status", "check_mode", "outcome", "success"),
    [
        (True, "ok", False, "done", True),
        (True, "critical", False, "partly", False),
        (False, "critical", False, "nothing", False),
        (True, "critical", True, "would", None),
        (False, "ok", True, "nothing", None),
    ],
)
def test_verify_follows_the_check(changed: bool, status: str, check_mode: bool, outcome: str, success: object) -> None:
    result = RecoveryResult("disk_cleanup", changed=changed, message="Cleaned.", checks=["disk"])
    verify([result], [{"name": "disk", "status": status, "message": "Full."}], check_mode=check_mode)
    assert (result.outcome, result.success) == (outcome, success)
    assert result.message.endswith(" Still: disk: critical: Full.") is (success is False)


def test_verify_keeps_what_was_refused_or_failed() -> None:
    refused, failed = RecoveryResult("deploy", checks=["cors"]), RecoveryResult("log_rotation", checks=["disk"])
    refused.refuse("Not now.", "Wait.")
    failed.fail("No space.")
    verify([refused, failed], [{"name": "disk", "status": "ok", "message": ""}])
    assert [brief(each.as_dict())["outcome"] for each in (refused, failed)] == ["refused", "failed"]
