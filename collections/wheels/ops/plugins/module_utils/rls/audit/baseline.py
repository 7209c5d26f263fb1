# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""An earlier audit as a baseline: a project with old findings fails for new ones only."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

from ...core.results import OpsError
from ..model.findings import identity_of


def read(path: Path) -> t.FrozenSet[t.Tuple[str, ...]]:
    """The identities of the findings in a report that ``rls audit --format json`` wrote.

    Raises ``OpsError`` where the file is no such report: a baseline that cannot be read must not hide a finding.
    """
    hint = "Write one with: rls audit --format json --output FILE"
    try:
        findings = json.loads(path.read_text(encoding="utf-8"))["findings"]
        return frozenset(identity_of(str(entry["kind"]), str(entry["object"]), entry["details"]) for entry in findings)
    except OSError as error:
        raise OpsError(f"Cannot read the baseline {path}: {error.strerror}.", hint=hint) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OpsError(f"{path} is not a report of rls audit.", hint=hint) from error
