# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The ops token, and the directories that the backend's environment variables name."""

from __future__ import annotations

import os
import pwd
import secrets
import stat
import string
import typing as t
from pathlib import Path

from ..core.options import absolute_path
from ..core.results import OpsError, Result
from ..host.files import write_atomically
from ..state import directory as state_directory

#: Letters and digits; 43 of them hold 256 bits.
_ALPHABET = string.ascii_letters + string.digits
_TOKEN_LENGTH = 43
#: Others may pass through, and not list.
_TRAVERSABLE = 0o711


def create(
    *,
    state_dir: str,
    token_file: str,
    variables_file: str,
    directories: t.Sequence[str],
    owner: str = "",
    check_mode: bool = False,
) -> Result:
    """Creates what is missing; the same result in check mode.

    The directories of ``token_file`` and ``variables_file`` keep their mode where they are there: one may be somebody's
    home. The token is created once and kept: monitors and people have it. ``directories`` are ``owner``'s alone, for
    whom ``state_dir`` above them becomes traversable. Without ``owner`` they belong to the user of this process.

    Raises ``OpsError`` where another user could put a link in the way of the token, for an unknown owner, and for
    what cannot be created; what had been created by then stays, and is found by the next run.
    """
    for name, value in (("token_file", token_file), ("variables_file", variables_file)):
        absolute_path(name, value)
    setting = "wheels_ops_token_file"
    state_directory.require(Path(token_file).parent, name=f"directory of {setting}", setting=setting)
    account = _account(owner)
    actions: t.List[t.Dict[str, t.Any]] = []
    for parent in dict.fromkeys((str(Path(variables_file).parent), str(Path(token_file).parent))):
        _directory(parent, 0o755, None, actions, check_mode, keep=True)
    _token(token_file, account, actions, check_mode)
    if account:
        _directory(state_dir, _TRAVERSABLE, None, actions, check_mode)
    for each in directories:
        _directory(each, 0o700, account, actions, check_mode)
    targets = [action["target"] for action in actions]
    return Result(
        changed=bool(actions),
        before={"missing": [action["target"] for action in actions if action["action"] == "create"]},
        after={"missing": []},
        actions=actions,
        msg=f"{', '.join(targets)} {'would be' if check_mode else 'were'} created or given their mode and owner."
        if actions
        else "The token and all directories are there.",
        diff=[
            {
                "before_header": action["target"],
                "after_header": action["target"],
                "before": action["was"] + "\n",
                "after": action["is"] + "\n",
            }
            for action in actions
        ],
    )


def _account(owner: str) -> t.Optional[pwd.struct_passwd]:
    if not owner:
        return None
    try:
        # As Ansible's own modules take an owner: by name, or by number.
        return pwd.getpwuid(int(owner)) if owner.isdigit() else pwd.getpwnam(owner)
    except (KeyError, OverflowError):
        raise OpsError(
            f"owner must be a user of this host, got {owner!r}.",
            hint="Name the user of the backend with wheels_ops_backend_user.",
        ) from None


def _directory(
    path: str,
    mode: int,
    account: t.Optional[pwd.struct_passwd],
    actions: t.List[t.Dict[str, t.Any]],
    check_mode: bool,
    *,
    keep: bool = False,
) -> None:
    """Creates a directory with its parents, or gives it ``mode`` and owner; with ``keep``, leaves one that is there."""
    absolute_path("directories", path)
    try:
        status: t.Optional[os.stat_result] = os.stat(path)
    except FileNotFoundError:
        status = None
    except OSError as error:
        raise _failure(path, error) from error
    if status and not stat.S_ISDIR(status.st_mode):
        raise OpsError(f"{path} must be a directory.", hint="Move away what is there.")
    wanted = _shown(mode, account.pw_uid if account else status.st_uid if status else os.geteuid())
    present = _shown(stat.S_IMODE(status.st_mode), status.st_uid) if status else "absent"
    if (status and keep) or present == wanted:
        return
    try:
        if not check_mode:
            if not status:
                os.makedirs(path, mode=0o755, exist_ok=True)
            os.chmod(path, mode)
            if account and (not status or status.st_uid != account.pw_uid):
                os.chown(path, account.pw_uid, -1)
    except OSError as error:
        raise _failure(path, error) from error
    actions.append(
        {"action": "set" if status else "create", "target": path, "changed": True, "was": present, "is": wanted}
    )


def _token(
    path: str, account: t.Optional[pwd.struct_passwd], actions: t.List[t.Dict[str, t.Any]], check_mode: bool
) -> None:
    if os.path.lexists(path):
        return
    if account and os.geteuid() not in (0, account.pw_uid):
        raise OpsError(f"{path} cannot be given to {account.pw_name}: only root may do that.", hint="Run as root.")
    if not check_mode:
        token = "".join(secrets.choice(_ALPHABET) for _number in range(_TOKEN_LENGTH))
        owner = (account.pw_uid, os.getegid()) if account else None
        write_atomically(Path(path), f"{token}\n".encode(), mode=0o600, owner=owner)
    wanted = _shown(0o600, account.pw_uid if account else os.geteuid())
    actions.append({"action": "create", "target": path, "changed": True, "was": "absent", "is": wanted})


def _shown(mode: int, uid: int) -> str:
    return f"mode {mode:04o}, user {uid}"


def _failure(path: str, error: OSError) -> OpsError:
    return OpsError(f"{path} cannot be created: {error.strerror}.", hint="Run as root, or name another place.")
