# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The library behind the modules of C(wheels.ops), the health monitor and the program C(wheels-ops).

Plain typed Python with relative imports. Only ``_ansible`` knows Ansible; ``checks`` measure, ``remedies`` change.
"""

from __future__ import annotations

from .core.version import VERSION as __version__

__all__ = ["__version__"]

if __name__ == "wheels_ops":
    from . import _moved

    _moved.redirect()
