# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a report, an alert and the metrics say that a runbook is."""

from __future__ import annotations

import pytest

from wheels_ops.core.results import OpsError
from wheels_ops.report import runbooks

TEMPLATE = "https://docs.example.com/runbooks/{name}.html"


def test_address_is_that_of_the_template_or_the_page_of_the_repository() -> None:
    assert runbooks.address("disk", TEMPLATE) == "https://docs.example.com/runbooks/disk.html"
    assert runbooks.address("disk") == "docs/runbooks/disk.md"


@pytest.mark.parametrize("template", ["", TEMPLATE])
def test_template_or_none_is_taken(template: str) -> None:
    runbooks.require(template)


@pytest.mark.parametrize(
    "template", ["docs/{name}.md", "javascript:alert('{name}')", "https://docs.example.com/runbooks"]
)
def test_template_that_leads_nowhere_is_refused(template: str) -> None:
    with pytest.raises(OpsError, match="runbook_url"):
        runbooks.require(template)
