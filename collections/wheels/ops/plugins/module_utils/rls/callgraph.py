# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The calls that happen at run time: policies, views and functions."""

from __future__ import annotations

import typing as t

from .catalog import Catalog
from .findings import Finding


def findings(read: Catalog) -> t.List[Finding]:
    return []
