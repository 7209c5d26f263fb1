# SPDX-License-Identifier: GPL-3.0-or-later
"""What checks say of a backend that is not there."""

from __future__ import annotations

from tests.support.waiting import free_port
from wheels_ops.checks import suite


def test_a_backend_that_is_not_there_is_named_in_one_short_sentence() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    # The CPU of the services, of which there are none: whatever else the machine does, its use is no reason here.
    found = suite.run(suite.Options(subjects=["cpu", "http", "tts"], base_url=url, scope="services"))["checks"]
    assert {check["name"]: check["status"] for check in found} == {
        "cpu": "unknown",
        "http": "critical",
        "tts": "critical",
    }
    for check in found:
        assert check["message"].startswith(f"{url} does not answer") and len(check["message"]) < 120, check["message"]
