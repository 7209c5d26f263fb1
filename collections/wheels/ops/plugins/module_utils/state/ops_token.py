# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The token of the health API, out of its file: one a line, as the backend reads it; a line that begins with ``#`` is a
comment.
"""

from __future__ import annotations

import errno
import os
import stat
import typing as t

from ..core.results import OpsError
from ..host.files import real_directory
from ..host.safe_tree import open_directory

#: Fewer characters can be guessed; the backend refuses them as well.
MIN_LENGTH = 16
#: Bytes of a token file.
MAX_BYTES = 65_536


def parse(text: str) -> t.Tuple[t.List[str], int]:
    """The tokens of a file, and how many lines are too short to be one. A ``#`` within a line is part of the token.

    The mark that some editors put before the first line is not, or a comment behind it would be a token.
    """
    lines = [line.strip() for line in text.lstrip("\ufeff").splitlines()]
    words = [line for line in lines if line and not line.startswith("#")]
    tokens = [word for word in words if len(word) >= MIN_LENGTH]
    return tokens, len(words) - len(tokens)


def token_of(token: str, path: str) -> str:
    """The ops token: given, or the first of a file.

    Raises ``OpsError`` for a file that cannot be read or holds none, and for a short one.
    """
    token = token.strip()
    if token and len(token) < MIN_LENGTH:
        raise OpsError(
            f"The ops token must have at least {MIN_LENGTH} characters.", hint="Give the one that the backend has."
        )
    if token or not path:
        return token
    tokens, short = parse(_read(path))
    if tokens:
        return tokens[0]
    if short:
        raise OpsError(
            f"The ops token in {path} must have at least {MIN_LENGTH} characters.",
            hint="The backend refuses it as well: write a longer one.",
        )
    raise OpsError(
        f"{path} holds no ops token.",
        hint="Its first line that is no comment is the token; or name another token_file.",
    )


def _read(path: str) -> str:
    """The content of a small regular file.

    A link that a lesser user may have set is not followed: its target's first line would be sent.
    """
    try:
        # By its real name, and whatever somebody makes a link meanwhile is refused.
        directory = open_directory(real_directory(os.path.dirname(path) or "."))
    except OSError as error:
        raise OpsError(
            f"Cannot read the ops token in {path}: {error.strerror}.", hint="Run as root, or name another token_file."
        ) from error
    try:
        # Not to wait for the other end of a named pipe.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        name = os.path.basename(path)
        try:
            descriptor = os.open(name, flags | os.O_NOFOLLOW, dir_fd=directory)
        except OSError as error:
            if error.errno != errno.ELOOP or os.stat(name, dir_fd=directory, follow_symlinks=False).st_uid not in (
                0,
                os.geteuid(),
            ):
                raise
            descriptor = os.open(name, flags, dir_fd=directory)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OpsError(f"{path} is no regular file, so it holds no ops token.", hint="Name another token_file.")
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise OpsError(
                f"{path} has more than {MAX_BYTES} bytes, so it holds no ops token.", hint="Name another token_file."
            )
        return content.decode("utf-8")
    except OSError as error:
        reason = "it is a link of another user" if error.errno == errno.ELOOP else error.strerror
        raise OpsError(
            f"Cannot read the ops token in {path}: {reason}.", hint="Run as root, or name another token_file."
        ) from error
    except UnicodeDecodeError:
        raise OpsError(f"{path} is no text, so it holds no ops token.", hint="Name another token_file.") from None
    finally:
        os.close(directory)
