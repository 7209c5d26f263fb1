# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The libraries that are imported, by the name under which pip installs them."""

from __future__ import annotations

import typing as t

#: Name of the import: name of the package.
PACKAGES: t.Dict[str, str] = {
    "pglast": "pglast",
    "psycopg2": "psycopg2-binary",
    "redis": "redis",
    "requests": "requests",
    "websocket": "websocket-client",
}


def package_of(error: ImportError) -> str:
    """The package whose import failed, as pip knows it; the module's own name where it is none of ours."""
    module = (error.name or str(error)).split(".", maxsplit=1)[0]
    return PACKAGES.get(module, module)
