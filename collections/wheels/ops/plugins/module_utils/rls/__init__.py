# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Row-level security: finds recursive policies by asking the server, repairs them, proves that nothing else changed."""

from __future__ import annotations

from ..core.results import OpsError
from .audit.audits import Audit, audit
from .audit.oracle import Failure, Probe, probe
from .model.findings import Finding
from .repair.apply import apply, undo
from .repair.plans import Plan, plan

__all__ = ["Audit", "Failure", "Finding", "OpsError", "Plan", "Probe", "apply", "audit", "plan", "probe", "undo"]
