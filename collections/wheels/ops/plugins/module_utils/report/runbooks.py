# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Where the runbook of a check or an alert is: the page ``docs/runbooks/NAME.md`` of this repository, or its address
where a site publishes it. The address is a template, so that a wiki of your own can be named as well.
"""

from __future__ import annotations

import typing as t

from ..core.options import url
from ..core.results import OpsError
from ..health.subjects import NAMES

#: Stands for the name of the page in ``wheels_ops_runbook_url``.
PLACEHOLDER = "{name}"
#: Alerts that are about no single check (roles/monitoring/files/prometheus, report/alerts.py); a test compares them.
ALERTS: t.Tuple[str, ...] = (
    "WheelsOpsCheckCritical",
    "WheelsOpsCheckUnknown",
    "WheelsOpsCheckWarning",
    "WheelsOpsRunStopped",
    "WheelsOpsClockAhead",
    "WheelsOpsBackendFailing",
    "WheelsOpsBackendDown",
    "WheelsOpsProblem",
)
PAGES: t.Tuple[str, ...] = (*NAMES, *ALERTS)


def require(template: str) -> None:
    """Raises ``OpsError`` for a template that leads nowhere. Empty is none at all."""
    if template:
        url("runbook_url", template.replace(PLACEHOLDER, "name"))
        if PLACEHOLDER not in template:
            raise OpsError(
                f"runbook_url must contain {PLACEHOLDER}, which stands for the page, got {template!r}.",
                hint=f"For example https://docs.example.com/runbooks/{PLACEHOLDER}.html.",
            )


def address(name: str, template: str = "") -> str:
    """The address of a runbook by the template, without one the path of its page in this repository."""
    return template.replace(PLACEHOLDER, name) if template else f"docs/runbooks/{name}.md"
