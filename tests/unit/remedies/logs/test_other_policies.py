# SPDX-License-Identifier: GPL-3.0-or-later
"""Who else rotates a log, as glob(3) and logrotate themselves see it."""

from __future__ import annotations

import glob
import itertools
import os
import typing as t
from pathlib import Path

import pytest

from wheels_ops.core.results import OpsError
from wheels_ops.remedies.logs import logrotate, other_policies, rotate

NEEDS_LOGROTATE = pytest.mark.skipif(not logrotate.installed(), reason="this machine has no logrotate")
PATTERNS = [
    "a.log",
    "*.log",
    "a*",
    "?.log",
    "[ab].log",
    "[!a].log",
    "*b*.log",
    "ab.log",
    "*",
    "d/*.log",
    "*/*.log",
    "**",
]


def test_overlap_agrees_with_glob(tmp_path: Path) -> None:
    """What two patterns match in common among all short names: there is one where and only where they overlap."""
    for directory in (tmp_path, tmp_path / "d"):
        directory.mkdir(exist_ok=True)
        for length in (1, 2):
            for letters in itertools.product("abc", repeat=length):
                (directory / f"{''.join(letters)}.log").touch()
    matched = {pattern: set(glob.glob(f"{tmp_path}/{pattern}")) for pattern in PATTERNS}
    for one, other in itertools.product(PATTERNS, repeat=2):
        expected = bool(matched[one] & matched[other])
        assert other_policies.overlap(f"{tmp_path}/{one}", f"{tmp_path}/{other}") is expected, (one, other)


def test_the_logs_of_a_policy_are_those_before_its_braces() -> None:
    text = """# /commented/out.log {
/var/log/a.log
"/var/log/with space.log" /var/log/c*.log {
    weekly
    create 0640 root adm
    postrotate
        [ -e /run/x ] && { kill -HUP $(cat /run/x) ; }
        test -d /etc && for f in /etc/*; do echo $f; done
    endscript
}
/var/log/one-line.log { daily }
weekly
include /etc/logrotate.d
/var/log/last.log
{
    /not/a/log
}
"""
    assert other_policies.log_patterns(text) == [
        "/var/log/a.log",
        "/var/log/with space.log",
        "/var/log/c*.log",
        "/var/log/one-line.log",
        "/var/log/last.log",
    ]


def install(tmp_path: Path, other: str, *paths: str, name: str = "site") -> rotate.Result:
    policies = tmp_path / "policies"
    policies.mkdir(exist_ok=True)
    (policies / name).write_text(f"{other} {{\n weekly\n missingok\n}}\n")
    return rotate.manage_policy(
        "present", "ours", list(paths), rotate.Options(reopen=("true",)), directory=str(policies)
    )


@NEEDS_LOGROTATE
@pytest.mark.parametrize(
    ("other", "ours", "exists"),
    [
        ("*.log", "web.log", True),
        ("*.log", "web.log", False),
        ("web.log", "*.log", True),
        ("web.log", "w*.log", False),
        ("*b.log", "w*.log", True),
        ("web.lo[g]", "web.log", True),
    ],
)
def test_a_log_that_another_policy_covers_is_refused_as_logrotate_would(
    tmp_path: Path, other: str, ours: str, exists: bool
) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    if exists:
        (logs / "web.log").write_text("x")
    with pytest.raises(OpsError, match=r"policies/site rotates one of these logs already: .*web\.log\.") as raised:
        install(tmp_path, f"{logs}/{other}", f"{logs}/{ours}")
    assert raised.value.hint and os.listdir(tmp_path / "policies") == ["site"]


@NEEDS_LOGROTATE
def test_what_may_meet_one_day_is_warned_of(tmp_path: Path) -> None:
    result = install(tmp_path, f"{tmp_path}/*b.log", f"{tmp_path}/w*.log")
    assert result.changed and "can match the same log" in " ".join(result.warnings)
    assert "can match" not in " ".join(install(tmp_path, "/other/*.log", f"{tmp_path}/w*.log").warnings)


@NEEDS_LOGROTATE
def test_a_policy_that_logrotate_passes_over_is_none(tmp_path: Path) -> None:
    (tmp_path / "web.log").write_text("x")
    assert install(tmp_path, f"{tmp_path}/*.log", f"{tmp_path}/web.log", name="site.dpkg-old").changed


@NEEDS_LOGROTATE
def test_what_logrotate_alone_sees_twice_is_refused(tmp_path: Path) -> None:
    """A policy that includes another file: its logs are in no text that we read."""
    (tmp_path / "web.log").write_text("x")
    (tmp_path / "included").write_text(f"{tmp_path}/web.log {{\n weekly\n}}\n")
    policies = tmp_path / "policies"
    policies.mkdir()
    (policies / "site").write_text(f"include {tmp_path}/included\n")
    for path in (policies / "site", tmp_path / "included"):
        path.chmod(0o644)
    with pytest.raises(OpsError, match="duplicate log entry"):
        rotate.manage_policy(
            "present", "ours", [f"{tmp_path}/web.log"], rotate.Options(reopen=("true",)), directory=str(policies)
        )


ID = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("path", "word"),
    [
        (f"/var/lib/docker/containers/{ID}/{ID}-json.log", "max-size"),
        ("/var/lib/docker/containers/*/*.log", "max-size"),
        ("/data/docker/containers/*/*-json.log", "max-size"),
        (f"/var/lib/containers/storage/overlay-containers/{ID}/userdata/ctr.log", "log_size_max"),
        ("/var/log/pods/*/*/*.log", "containerLogMaxSize"),
        ("/var/log/containers/*.log", "containerLogMaxSize"),
    ],
)
@pytest.mark.parametrize("state", ["rotated", "present"])
def test_a_container_engines_log_is_refused_with_what_to_set(path: str, word: str, state: str) -> None:
    given = {"paths": [path], "state": state, "reopen": ["true"], "name": "x", "frequency": "daily"}
    with pytest.raises(OpsError) as raised:
        rotate.run_with(given)
    assert word in raised.value.hint


def test_a_container_engines_log_among_others_is_refused_alone(tmp_path: Path) -> None:
    place = tmp_path / f"docker/containers/{ID}"
    place.mkdir(parents=True)
    for name in (f"{ID}-json.log", "app.log"):
        (place / name).write_bytes(b"line\n" * 2000)
    with pytest.raises(OpsError, match="Docker rotates it") as raised:
        rotate.run([f"{tmp_path}/docker/containers/*/*.log"], rotate.Options(max_size=4096))
    assert [action["target"] for action in raised.value.details["actions"]] == [f"{place}/app.log"]
    assert (place / f"{ID}-json.log").stat().st_size == 10_000


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"usr/lib/systemd/system/logrotate.timer": "OnCalendar=daily\n"}, "logrotate.timer has OnCalendar=daily"),
        ({"usr/lib/systemd/system/logrotate.timer": "OnCalendar=hourly\n"}, ""),
        ({"usr/lib/systemd/system/logrotate.timer": "OnCalendar=*-*-* *:00/15:00\n"}, ""),
        ({"usr/lib/systemd/system/logrotate.timer": "OnCalendar=*-*-* 04:00:00\n"}, "04:00:00"),
        (
            {
                "usr/lib/systemd/system/logrotate.timer": "OnCalendar=daily\n",
                "etc/systemd/system/logrotate.timer.d/override.conf": "[Timer]\nOnCalendar=\nOnCalendar=hourly\n",
            },
            "",
        ),
        (
            {
                "usr/lib/systemd/system/logrotate.timer": "OnCalendar=hourly\n",
                "etc/systemd/system/logrotate.timer": "OnCalendar=weekly\n",
            },
            "weekly",
        ),
        ({"etc/cron.daily/logrotate": "#!/bin/sh\n"}, "cron runs it daily"),
        ({"etc/cron.daily/logrotate": "", "etc/cron.hourly/logrotate": "#!/bin/sh\n"}, ""),
        ({}, "nothing runs it"),
    ],
)
def test_how_often_logrotate_runs(tmp_path: Path, files: t.Dict[str, str], words: str) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    said = other_policies.slower_than_hourly(str(tmp_path))
    assert words in said if words else said == ""


@NEEDS_LOGROTATE
def test_a_policy_of_every_hour_says_that_logrotate_runs_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(other_policies, "slower_than_hourly", lambda: "cron runs it daily")
    options = rotate.Options(reopen=("true",))
    for frequency, warned in (("hourly", True), ("daily", False)):
        result = rotate.manage_policy(
            "present", frequency, [f"{tmp_path}/{frequency}.log"], options, frequency=frequency, directory=str(tmp_path)
        )
        assert any("cron runs it daily" in sentence for sentence in result.warnings) is warned
