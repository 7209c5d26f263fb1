# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The attributes that the modules share: RV(ignore) for readers, checked by antsibull-docs."""

from __future__ import annotations


class ModuleDocFragment:
    #: A module that changes something.
    DOCUMENTATION = r"""
attributes:
  check_mode:
    support: full
    description: Changes nothing and gives the result, in the same shape, that a real run would give.
  diff_mode:
    support: full
    description: Says what changes, or would change, when C(--diff) is given.
  idempotent:
    support: full
    description: A second run with the same options finds nothing left to do.
  platform:
    support: full
    platforms: Debian 12 and 13, Ubuntu 22.04 and newer
    description: Where the module runs.
"""
    #: A module that only measures.
    INFO = r"""
attributes:
  check_mode:
    support: full
    description: This module changes nothing in either mode.
  diff_mode:
    support: N/A
    description: There is nothing to compare, as nothing is changed.
  idempotent:
    support: full
    description: This module changes nothing, however often it runs.
  platform:
    support: full
    platforms: Debian 12 and 13, Ubuntu 22.04 and newer
    description: Where the module runs.
"""
