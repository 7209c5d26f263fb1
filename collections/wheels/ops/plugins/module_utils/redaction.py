# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Taking secrets out of what is shown."""

from __future__ import annotations

from urllib.parse import urlsplit


def redact_url(url: str) -> str:
    """A URL without its password: ``redis://user:***@host:6379/0``; what cannot be parsed is not shown at all."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "***"
    who = f"{parts.username or ''}:***@" if parts.password else f"{parts.username}@" if parts.username else ""
    return f"{parts.scheme}://{who}{host}{port}{parts.path}"
