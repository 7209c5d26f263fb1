# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook monitor: check mode, run, run again; without systemd, as any user.

It is taken away in ``modules/test_remedies_under_systemd.py``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from tests.sandbox.binaries import REPOSITORY

SECRET = "correct-horse-battery"


class Site:
    """Where everything of one host goes, and the playbook that is run on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.backend = root / "production"
        (self.backend / "scripts").mkdir(parents=True)
        self.variables: t.Dict[str, t.Any] = {
            "wheels_ops_hosts": "all",
            "ansible_python_interpreter": sys.executable,
            "wheels_ops_venv": sys.prefix,
            "wheels_ops_program_dir": str(root / "opt"),
            "wheels_ops_backend_dir": str(self.backend),
            "wheels_ops_state_dir": str(root / "state"),
            "wheels_ops_monitor_config": str(root / "etc/monitor.json"),
            "monitoring_schedule": "cron",
            "monitoring_cron_file": str(root / "cron"),
            "monitoring_unit_dir": str(root),
            "monitoring_recovery_scheduled": True,
            "wheels_ops_redis_url": f"redis://:{SECRET}@127.0.0.1:1/0",
            "monitoring_subjects": ["disk"],
            "wheels_ops_filesystems": [],
            "wheels_ops_log_directories": [str(root)],
            "wheels_ops_thresholds": {"disk": {"warning": 70}},
            "wheels_ops_disk_budgets": {str(self.backend): 1_000_000_000},
            "monitoring_recovery": {"cache_prefixes": ["user_profile:"]},
        }

    def playbook(self, *words: str, status: int = 0, **further: t.Any) -> t.Tuple[int, str]:
        """How many tasks changed something, and the output; the run has to end as it is said, well unless told
        otherwise.
        """
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        command = [
            program,
            "-i",
            "here,",
            "-c",
            "local",
            "playbooks/monitor.yml",
            "-e",
            json.dumps({**self.variables, **further}),
            *words,
        ]
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
            "ANSIBLE_HOME": str(self.root / "home"),
            "ANSIBLE_FORCE_COLOR": "0",
            "ANSIBLE_PIPELINING": "1",
        }
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stdout + done.stderr
        assert SECRET not in done.stdout + done.stderr
        return sum(int(number) for number in re.findall(r"changed=(\d+)", done.stdout)), done.stdout

    def files(self) -> t.Dict[str, str]:
        kept = (path for path in self.root.rglob("*") if "home" not in path.parts and "__pycache__" not in path.parts)
        return {
            str(path.relative_to(self.root)): f"{path.lstat().st_mode:o} {path.lstat().st_mtime_ns}"
            for path in kept
            if not path.is_dir()
        }


@pytest.mark.slow
def test_check_mode_foretells_a_run_installs_and_a_second_changes_nothing(tmp_path: Path) -> None:
    site = Site(tmp_path)
    other = site.backend / "scripts/automated_recovery.py"
    other.write_text("# of the first attempt\n")
    (site.backend / "production_health_monitor.py").write_text("def (:\n")
    before = site.files()
    foretold, output = site.playbook("--check", "--diff")
    assert site.files() == before and "files of the library would be" not in output
    for words in ("+++ after: /", "standalone/monitor.py", "production_health_monitor.py", "*/15 * * * * root"):
        assert words in output, words
    changed, output = site.playbook("--diff")
    assert changed == foretold > 0
    assert (
        "is not ours and was left alone" in re.sub(r"\s+", " ", output)
        and other.read_text() == "# of the first attempt\n"
    )
    aside = site.backend / "production_health_monitor.py.original"
    assert (
        aside.read_text() == "def (:\n"
        and "production_health_monitor.py of the release is no valid Python" in re.sub(r"\s+", " ", output)
    )
    config = tmp_path / "etc/monitor.json"
    assert config.stat().st_mode & 0o777 == 0o600
    written = json.loads(config.read_text())
    assert SECRET in written["checks"]["redis_url"] and written["checks"]["thresholds"] == {"disk": {"warning": 70}}
    assert [service["name"] for service in written["checks"]["services"]] == [
        "redis",
        "pam-backend",
        "celery-worker",
        "celery-beat",
    ]
    assert (written["recovery"]["log_directories"], written["recovery"]["cache_prefixes"]) == (
        [str(tmp_path)],
        ["user_profile:"],
    )
    after = site.files()
    assert site.playbook("--diff")[0] == 0
    assert site.files() == after
    # The command of the incident report, where it says; with a Python that has no package of ours.
    bare = {
        key: value
        for key, value in os.environ.items()
        if not key.endswith("_URL") and not key.startswith("WHEELS_OPS_")
    }
    by_hand = [sys.executable, "-S", "production_health_monitor.py"]
    done = subprocess.run(by_hand, cwd=site.backend, env=bare, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.startswith("OK: 1 of 1 checks are healthy"), done.stdout + done.stderr
    # What cron would run: silent while all is healthy, otherwise the report.
    line = next(line for line in (tmp_path / "cron").read_text().splitlines() if "production_health_monitor" in line)
    assert (tmp_path / "cron").read_text().count("automated_recovery.py") == 1
    command = line.split(" root ", 1)[1]
    done = subprocess.run(["/bin/sh", "-c", command], env=bare, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("", 0)
    assert json.loads((tmp_path / "state/health.json").read_text())["status"] == "ok"
    written["checks"]["disk_budgets"] = {str(site.backend): 1}
    config.write_text(json.dumps(written))
    done = subprocess.run(["/bin/sh", "-c", command], env=bare, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("CRITICAL: ")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, whom the link leads astray")
def test_a_link_of_the_backends_user_leads_no_file_elsewhere(tmp_path: Path) -> None:
    """The directory of the programs' links is his: behind his link lies one of root's."""
    site = Site(tmp_path)
    guarded = tmp_path / "cron.d"
    guarded.mkdir()
    (site.backend / "scripts").rmdir()
    (site.backend / "scripts").symlink_to(guarded)
    os.chown(site.backend / "scripts", 65534, 65534, follow_symlinks=False)
    _changed, output = site.playbook(status=2, monitoring_schedule="none")
    assert "is a link that belongs to another user" in re.sub(r"\s+", " ", output)
    assert list(guarded.iterdir()) == []
