# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The token of the health API, out of its file."""

from __future__ import annotations

from .results import OpsError


def token_of(given: str, path: str) -> str:
    """The ops token: given, or the first line of a file that is no comment. Raises ``OpsError`` for a file that cannot be read or holds none."""
    if given or not path:
        return given
    try:
        with open(path, encoding="utf-8") as file:
            found = next((line.strip() for line in file if line.strip() and not line.startswith("#")), "")
    except OSError as error:
        raise OpsError(f"Cannot read the ops token in {path}: {error.strerror}.", hint="Run as root, or name another token_file.") from error
    except UnicodeDecodeError:
        raise OpsError(f"{path} is no text, so it holds no ops token.", hint="Name another token_file.") from None
    if not found:
        raise OpsError(f"{path} holds no ops token.", hint="Its first line that is no comment is the token; or name another token_file.")
    return found
