# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Writing files so that a power cut leaves the old content or the new, never a half: see ``host/files.py``."""

from __future__ import annotations

from .host.files import read_json, sha256, write_atomically, write_json

__all__ = ["read_json", "sha256", "write_atomically", "write_json"]
