# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The one place in which other programs are started."""

from __future__ import annotations

import subprocess
import typing as t

# ansible-test asks for AnsibleModule.run_command. This library is also used without Ansible, where there is no such
# object, and that knows no time-out. pylint: disable=ansible-bad-function


def run(
    words: t.Sequence[str],
    *,
    timeout: float,
    cwd: t.Optional[str] = None,
    environment: t.Optional[t.Mapping[str, str]] = None,
) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end, without a shell and without input. ``environment``: the whole of it; ours where it is
    not given.

    Raises ``subprocess.TimeoutExpired`` after ``timeout`` seconds, when it is killed, and ``OSError`` where it cannot
    be started.
    """
    return subprocess.run(
        list(words),
        cwd=cwd,
        env=None if environment is None else dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout,
        check=False,
    )


def start(
    words: t.Sequence[str], *, cwd: str, environment: t.Mapping[str, str], descriptors: t.Collection[int] = ()
) -> subprocess.Popen[bytes]:
    """Starts a program with pipes, as the leader of a group of its own, so that all that it starts can be ended with
    it. Raises ``OSError``.

    ``descriptors``: those of ours that it inherits, under the same numbers.
    """
    return subprocess.Popen(
        list(words),
        cwd=cwd,
        env=dict(environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        pass_fds=tuple(descriptors),
    )
