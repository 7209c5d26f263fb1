# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Faster policies with the same meaning, never at the price of a recursion."""

from __future__ import annotations

import typing as t

from .catalog import Catalog
from .details import Details
from .repair import Decision
from .session import Cursor


def extend(cursor: Cursor, made: t.Any, decision: Decision, catalog: Catalog, known: Details, fix: t.Sequence[str]) -> None:
    """Adds the fixes asked for to a decision."""
