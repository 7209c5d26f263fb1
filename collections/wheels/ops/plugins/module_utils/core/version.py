# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The version of the library.

In a file of its own: Ansible finds what a module imports by file, and no name in a package.
"""

from __future__ import annotations

VERSION = "1.1.0"
