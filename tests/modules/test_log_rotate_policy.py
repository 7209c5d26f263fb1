# SPDX-License-Identifier: GPL-3.0-or-later
"""Permanent policies: read by logrotate before they are installed, and carried out by it."""

from __future__ import annotations

import os
import subprocess
import typing as t
from pathlib import Path

import pytest

from tests.support import log_writer
from tests.support.waiting import wait_until
from wheels_ops.core.results import OpsError, Result
from wheels_ops.remedies.logs import logrotate, rotate

pytestmark = pytest.mark.skipif(not logrotate.installed(), reason="this machine has no logrotate")


def manage(
    directory: Path, paths: t.Sequence[str], state: str = "present", check_mode: bool = False, **options: t.Any
) -> Result:
    rotation = rotate.Options(**{"reopen": ("true",), **options})
    return rotate.manage_policy(
        state, "pam-backend", paths, rotation, directory=str(directory), check_mode=check_mode, want_diff=True
    )


def test_check_install_again_remove(tmp_path: Path) -> None:
    policies = tmp_path / "logrotate.d"
    policies.mkdir()
    log = tmp_path / "access.log"
    log.write_text("line\n")
    foreseen = manage(policies, [str(log)], check_mode=True)
    assert list(policies.iterdir()) == []
    done = manage(policies, [str(log)])
    assert (foreseen.changed, done.changed, manage(policies, [str(log)]).changed) == (True, True, False)
    assert foreseen.diff == done.diff and foreseen.after == done.after
    text = (policies / "pam-backend").read_text()
    assert "maxsize 50000000" in text and "copytruncate" not in text and "delaycompress" in text
    changed = manage(policies, [str(log)], keep=30)
    assert changed.changed and "rotate 30" in (policies / "pam-backend").read_text()
    gone = manage(policies, [], state="absent")
    assert gone.changed and list(policies.iterdir()) == []
    assert not manage(policies, [], state="absent").changed


def test_logrotate_carries_it_out_without_losing_a_line(tmp_path: Path) -> None:
    policies, logs = tmp_path / "logrotate.d", tmp_path / "log"
    policies.mkdir()
    logs.mkdir(mode=0o755)
    log = logs / "access.log"
    with log_writer.writer(log, "reopen") as (process, stop):
        manage(policies, [f"{logs}/*.log"], max_size=1_000_000, reopen=("kill", "-HUP", str(process.pid)))
        parts = 0
        while parts < 2:
            wait_until(lambda: log.exists() and log.stat().st_size > 1_000_000)
            # Parts of one second would have one name: logrotate then leaves the log as it is.
            subprocess.run(
                [logrotate.installed(), "--state", str(tmp_path / "state"), "--force", str(policies / "pam-backend")],
                check=False,
            )
            parts = len(os.listdir(logs)) - 1
        written = stop()
    assert any(path.suffix == ".gz" for path in logs.iterdir())
    assert log_writer.account(log_writer.read(logs, log.name), written) == {
        "lost": 0,
        "doubled": 0,
        "torn": 0,
        "nuls": 0,
    }


def test_what_logrotate_does_not_understand_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logrotate, "policy_text", lambda *_args, **_more: '"/var/log/x" {\n  rotate often\n}\n')
    with pytest.raises(OpsError, match="logrotate refuses the policy"):
        manage(tmp_path, ["/var/log/x"])
    assert list(tmp_path.iterdir()) == []


def test_a_policy_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "pam-backend").write_text("/var/log/x.log {\n}\n")
    with pytest.raises(OpsError, match="was not written by wheels.ops"):
        manage(tmp_path, ["/var/log/y.log"])
    with pytest.raises(OpsError, match="was not written by wheels.ops"):
        manage(tmp_path, [], state="absent")
    (tmp_path / "pam-backend").rename(tmp_path / "other")
    with pytest.raises(OpsError, match="rotates one of these logs already"):
        manage(tmp_path, ["/var/log/x.log"])


@pytest.mark.parametrize(
    "path", ['/var/log/"quoted"', "/var/log/{a}", "relative.log", "/var/log/../x", "/var/log/new\nline"]
)
def test_paths_that_would_break_out_are_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(OpsError):
        manage(tmp_path, [path])


@pytest.mark.parametrize(
    "path", ["/", "/*", "/*.log", "/*/app/x.log", "/etc/passwd", "/etc/cron.d/*", "/usr/lib/x.log", "/tmp"]
)
def test_what_is_no_log_gets_no_policy_and_is_not_rotated(tmp_path: Path, path: str) -> None:
    with pytest.raises(OpsError, match="paths is"):
        manage(tmp_path, [path])
    with pytest.raises(OpsError, match="paths is"):
        rotate.run([path], rotate.Options())
    assert not list(tmp_path.iterdir())


def test_a_log_that_is_named_twice_is_written_once(tmp_path: Path) -> None:
    policy = t.cast(str, manage(tmp_path, ["/var/log/x.log", "/var/log/x.log"]).after["policy"])
    assert policy.count("/var/log/x.log") == 1


@pytest.mark.parametrize("state", ["present", "rotated"])
def test_a_command_that_does_not_exist_is_refused_before_a_log_is_renamed(tmp_path: Path, state: str) -> None:
    log = tmp_path / "x.log"
    log.write_bytes(b"x" * 8192)
    given = {
        "state": state,
        "name": "x",
        "frequency": "daily",
        "paths": [str(log)],
        "max_size": "4096",
        "reopen": ["no-such-program"],
    }
    with pytest.raises(OpsError, match="no-such-program"):
        rotate.run_with(given)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.log"]


def test_a_policy_that_would_lose_lines_needs_consent(tmp_path: Path) -> None:
    with pytest.raises(OpsError, match="tell the writers to reopen"):
        manage(tmp_path, ["/var/log/x.log"], reopen=())
    assert "copytruncate" in t.cast(
        str, manage(tmp_path, ["/var/log/x.log"], reopen=(), allow_loss=True).after["policy"]
    )


def test_without_logrotate_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logrotate, "installed", lambda: "")
    with pytest.raises(OpsError, match="apt-get install logrotate"):
        manage(tmp_path, ["/var/log/x.log"])


def test_a_path_that_matches_no_log_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "app.log").write_bytes(b"line\n" * 2000)
    (tmp_path / "link.log").symlink_to(tmp_path / "app.log")
    paths = [str(tmp_path / name) for name in ("app.log", "ap*.log", "mistyped-*.log", "link.log", "nowhere/*.log")]
    result = rotate.run(paths, rotate.Options(max_size=4096))
    assert [action["target"] for action in result.actions if action["action"] == "rotate"] == [
        str(tmp_path / "app.log")
    ]
    assert result.warnings == [
        f"{tmp_path}/mistyped-*.log in paths matches no log.",
        f"{tmp_path}/link.log in paths matches no log: it is a link, and links are passed over.",
        f"{tmp_path}/nowhere/*.log in paths matches no log: there is no directory {tmp_path}/nowhere.",
    ]
    again = rotate.run(paths[:2], rotate.Options(max_size=4096), check_mode=True)
    assert not again.changed and not again.warnings
