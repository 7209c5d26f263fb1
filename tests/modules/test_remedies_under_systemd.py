# SPDX-License-Identifier: GPL-3.0-or-later
"""The remedies on a host whose services systemd runs: check mode changes nothing, the run does, the next run finds
nothing to do.

What happened is looked at by the host's own programs. Then the same as a user without rights: it works, or the right
that is missing is named.
"""

from __future__ import annotations

import concurrent.futures
import json
import sys
import typing as t

import pytest

from tests.support import log_writer, memory_shapes
from tests.support.container_host import ContainerHost, Unavailable, container_host
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.root, pytest.mark.slow]
REDIS = "redis://127.0.0.1:6379/0"
USER = "plain"


@pytest.fixture(scope="module")
def host() -> t.Iterator[ContainerHost]:
    try:
        with container_host() as host:
            host.user(USER)
            yield host
    except Unavailable as error:
        pytest.skip(f"no host with systemd on this machine: {error}")


def three(
    host: ContainerHost, name: str, arguments: t.Mapping[str, t.Any], look: t.Callable[[], t.Any], *, user: str = "root"
) -> t.Tuple[t.Dict[str, t.Any], t.Dict[str, t.Any]]:
    """Check mode, the run, and the run again, with ``look`` as the witness; gives what was foretold and
    what was done.
    """
    before = look()
    foretold = host.module(name, arguments, check_mode=True, user=user)
    assert foretold.get("changed"), foretold
    assert look() == before, "check mode changed something"
    done = host.module(name, arguments, user=user)
    assert done.get("changed"), done
    after = look()
    assert after != before
    for check_mode in (True, False):
        again = host.module(name, arguments, check_mode=check_mode, user=user)
        assert not again.get("failed") and not again["changed"], again
    assert look() == after
    assert set(foretold) == set(done)
    return foretold, done


def resident_mib(host: ContainerHost, unit: str) -> int:
    """By ps."""
    return int(host.run("ps", "-o", "rss=", "-p", host.show(unit, "MainPID")).stdout) // 1024


def fat(host: ContainerHost, name: str, port: int, shape: str, **service: str) -> t.Dict[str, t.Any]:
    """A unit that holds 100 MB, of which most is waste; gives its entry for ``services``."""
    host.unit(name, f"{sys.executable} {memory_shapes.__file__} {port} {shape} 100", **service)
    wait_until(
        lambda: host.run("curl", "-sf", f"http://127.0.0.1:{port}/health", check=False).returncode == 0, what=name
    )
    return {
        "name": name,
        "gate": {"type": "http", "url": f"http://127.0.0.1:{port}/health", "headers": {"X-Forwarded-Proto": "http"}},
    }


def trim(host: ContainerHost, entry: t.Mapping[str, t.Any], port: int, share: float) -> t.Dict[str, t.Any]:
    """The arguments of a run on a service that uses ``share`` of its limit."""
    return {
        "services": [entry],
        "scope": "services",
        "memory_limits_mb": {entry["name"]: resident_mib(host, entry["name"]) / share},
        "base_url": f"http://127.0.0.1:{port}",
        "token": memory_shapes.TOKEN,
        "min_gain": "8M",
    }


def test_memory_is_trimmed(host: ContainerHost) -> None:
    arguments = trim(host, fat(host, "fat", 8400, "medium"), 8400, 0.8)
    size = resident_mib(host, "fat")
    foretold, done = three(host, "memory_trim", arguments, lambda: resident_mib(host, "fat") // 8)
    assert size - resident_mib(host, "fat") > 60
    assert (
        [action["action"] for action in foretold["actions"]]
        == [action["action"] for action in done["actions"]]
        == ["application"]
    )
    # The gate has a header "http", which is no secret: an address can still be read.
    assert "http://127.0.0.1:8400" in json.dumps(
        done["invocation"]
    ) and "VALUE_SPECIFIED_IN_NO_LOG_PARAMETER" in json.dumps(done["invocation"])


def test_a_limit_below_what_a_unit_needs_restarts_it_once(host: ContainerHost) -> None:
    arguments = {**trim(host, fat(host, "tight", 8401, "live"), 8401, 0.97), "allow_restart": True}
    _foretold, done = three(host, "memory_trim", arguments, lambda: host.show("tight", "InvocationID"))
    assert done["actions"][-1]["action"] == "restart"


def test_the_journal_is_vacuumed_and_old_files_go(host: ContainerHost) -> None:
    fill = "head -c 300000 /dev/urandom | base64 -w 200 | systemd-cat -t filler"
    host.run("sh", "-c", f"{fill}; journalctl --rotate; {fill}; journalctl --rotate; sleep 1.1")
    host.run(
        "sh",
        "-c",
        "mkdir -p /var/tmp/uploads; for n in 1 2 3; do head -c 50000 /dev/zero > /var/tmp/uploads/old$n; done",
    )
    host.run("sh", "-c", "touch -d '2 days ago' /var/tmp/uploads/old*; touch /var/tmp/uploads/new")
    journal = "/run/log/journal"
    sources = [
        {"kind": "journal", "path": journal, "age": "1s"},
        {"path": "/var/tmp/uploads", "age": "24h", "age_by": ["mtime"]},
    ]

    def look() -> t.Tuple[int, str]:
        return host.run("find", journal, "-name", "*@*").stdout.count("\n"), host.run("ls", "/var/tmp/uploads").stdout

    foretold, done = three(host, "disk_cleanup", {"sources": sources}, look)
    assert (foretold["files"], foretold["bytes_freed"]) == (done["files"], done["bytes_freed"])
    assert look() == (0, "new\n")
    assert host.run("journalctl", "--quiet", "--lines=1").stdout, "the journal cannot be read any more"


def test_a_policy_is_installed_and_a_unit_is_told_to_reopen(host: ContainerHost) -> None:
    log = "/var/log/access/access.log"
    host.run("mkdir", "-p", "/var/log/access")
    host.unit("access", f"{sys.executable} {log_writer.__file__} {log} reopen 20000 0")
    wait_until(lambda: int(host.run("stat", "-c", "%s", log, check=False).stdout or 0) > 100_000, what="its log")
    tell = ["systemctl", "kill", "--kill-whom=main", "--signal=HUP", "access"]
    policy = {"state": "present", "name": "access", "paths": [log], "reopen": tell, "max_size": "4K", "compress": False}
    three(host, "log_rotate", policy, lambda: host.run("cat", "/etc/logrotate.d/access", check=False).stdout)
    host.run("logrotate", "--force", "/etc/logrotate.d/access")
    pid = host.show("access", "MainPID")
    wait_until(
        lambda: host.run("sh", "-c", f"ls -l /proc/{pid}/fd | grep -c ' {log}$'", check=False).stdout.strip() == "1",
        what="the unit to reopen",
    )
    # By hand as well; then it is stopped, and every line is in one file, once.
    now = {"paths": [log], "reopen": tell, "max_size": "64K", "compress": False}
    wait_until(lambda: int(host.run("stat", "-c", "%s", log).stdout) > 100_000)
    done = host.module("log_rotate", now)
    assert done.get("changed") and done["actions"][0]["strategy"] == "logrotate", done
    host.run("systemctl", "stop", "access")
    counted = host.run(
        "sh",
        "-c",
        "cat /var/log/access/* | cut -c1-11 | sort | uniq -c | awk '{ if ($1 != 1) bad++ } END { print NR, bad + 0 }'",
    ).stdout.split()
    last = host.run("sh", "-c", "cat /var/log/access/* | cut -c1-11 | sort | tail -1").stdout
    assert counted == [str(int(last) + 1), "0"], "lines were lost or doubled"
    host.run("sh", "-c", f"head -c 100000 /dev/zero | tr '\\0' 'x' | fold -w 99 > {log}")
    three(host, "log_rotate", now, lambda: host.run("stat", "-c", "%s", log).stdout)
    removed = host.module("log_rotate", {"state": "absent", "name": "access"})
    assert removed["changed"] and host.run("test", "-e", "/etc/logrotate.d/access", check=False).returncode


def test_the_cache_is_purged_and_tasks_stay(host: ContainerHost) -> None:
    host.run(
        "redis-cli",
        "--raw",
        "eval",
        "for n = 1, 500 do redis.call('SET', 'response:' .. n, string.rep('x', 200)) end",
        "0",
    )
    host.run("redis-cli", "RPUSH", "celery", "task")

    def look() -> str:
        return host.run("redis-cli", "--raw", "eval", "return #redis.call('KEYS', 'response:*')", "0").stdout

    foretold, done = three(host, "cache_purge", {"url": REDIS, "prefixes": ["response:"]}, look)
    assert foretold["key_count"] == done["key_count"] == 500 and look() == "0\n"
    assert host.run("redis-cli", "LLEN", "celery").stdout == "1\n"


def test_background_work_is_throttled_and_set_free(host: ContainerHost) -> None:
    def look() -> str:
        return host.run(
            "redis-cli",
            "--raw",
            "eval",
            "local found = '' for _, key in ipairs(redis.call('KEYS', '*throttle*')) do "
            "found = found .. table.concat(redis.call('HGETALL', key), ',') end return found",
            "0",
        ).stdout

    three(host, "celery_throttle", {"redis_url": REDIS, "level": 3, "wait_timeout": 0}, look)
    assert "level,3" in look()
    three(host, "celery_throttle", {"redis_url": REDIS, "state": "normal", "wait_timeout": 0}, look)


def test_the_speech_engine_is_installed(host: ContainerHost) -> None:
    host.run("dpkg", "--purge", "espeak-ng")
    arguments = {"engines": ["espeak"], "primary": "fallback"}
    refused = host.module("tts_engine", arguments, user=USER)
    assert refused.get("failed") and "Only root may install espeak-ng" in refused["msg"], refused
    if host.run("timeout", "60", "apt-get", "-o", "Acquire::Retries=0", "update", check=False).returncode:
        pytest.skip("no Debian archive can be reached from the host")
    _foretold, done = three(
        host, "tts_engine", arguments, lambda: host.run("sh", "-c", "command -v espeak-ng", check=False).stdout
    )
    assert done["engine"] == "espeak"


def test_without_rights_own_files_and_services_work(host: ContainerHost) -> None:
    host.run(
        "sh",
        "-c",
        "cd ~ && mkdir uploads log && touch -d '2 days ago' uploads/old && head -c 100000 /dev/zero | tr '\\0' 'x' |"
        " fold -w 99 > log/app.log",
        user=USER,
        env={"HOME": f"/home/{USER}"},
    )
    home = f"/home/{USER}"
    sources = [{"path": f"{home}/uploads", "age": "24h", "age_by": ["mtime"]}]
    three(host, "disk_cleanup", {"sources": sources}, lambda: host.run("ls", f"{home}/uploads").stdout, user=USER)
    three(
        host,
        "log_rotate",
        {"paths": [f"{home}/log/*.log"], "max_size": "64K"},
        lambda: host.run("ls", f"{home}/log").stdout,
        user=USER,
    )
    arguments = {**trim(host, fat(host, "own", 8402, "medium", User=USER), 8402, 0.8), "state_dir": f"{home}/state"}
    three(host, "memory_trim", arguments, lambda: resident_mib(host, "own") // 8, user=USER)
    host.run("redis-cli", "SET", "response:1", "x")
    three(
        host,
        "cache_purge",
        {"url": REDIS, "prefixes": ["response:"]},
        lambda: host.run("redis-cli", "EXISTS", "response:1").stdout,
        user=USER,
    )
    throttle = {"redis_url": REDIS, "level": 1, "wait_timeout": 0}
    assert host.module("celery_throttle", throttle, user=USER)["changed"]
    assert host.module("celery_throttle", {**throttle, "state": "normal"}, user=USER)["changed"]


def test_without_rights_the_missing_one_is_named(host: ContainerHost) -> None:
    """Nothing is changed. Where the run would find it out only when it acts, check mode is asked as well."""
    home = f"/home/{USER}"
    host.run("sh", "-c", "mkdir -p /var/log/rooted && head -c 100000 /dev/zero > /var/log/rooted/app.log")
    host.run("redis-cli", "ACL", "SETUSER", "limited", "on", ">word", "~response:*", "+ping", "+get")
    host.unit("hog", "/bin/sh -c 'while :; do :; done'", CPUQuota="50%")
    entry = {"name": "redis-server", "gate": {"type": "redis", "url": REDIS}}
    tight = {
        **trim(host, fat(host, "foreign", 8403, "live"), 8403, 0.97),
        "allow_restart": True,
        "state_dir": f"{home}/state",
    }
    warm = {**trim(host, tight["services"][0], 8403, 0.7), "state_dir": f"{home}/state"}
    limited = "redis://limited:word@127.0.0.1:6379/0"
    cases: t.List[t.Tuple[str, t.Dict[str, t.Any], t.Tuple[str, ...]]] = [
        ("service_restart", {"services": [entry], "state_dir": f"{home}/state"}, ("Run as root", "polkit")),
        (
            "service_restart",
            {"services": [entry]},
            ("/var/lib/wheels-ops cannot be written: Permission denied", "state_dir"),
        ),
        (
            "disk_cleanup",
            {"sources": [{"kind": "journal", "path": "/run/log/journal"}]},
            ("Permission denied", "Run as root"),
        ),
        ("disk_cleanup", {"sources": [{"kind": "packages"}]}, ("/var/cache/apt", "Permission denied", "Run as root")),
        ("disk_cleanup", {"sources": [{"path": "/var/log/private"}]}, ("/var/log/private", "Permission denied")),
        (
            "log_rotate",
            {"state": "present", "name": "app", "paths": [f"{home}/log/app.log"], "reopen": ["true"]},
            ("/etc/logrotate.d", "Run as root"),
        ),
        ("log_rotate", {"paths": ["/var/log/rooted/app.log"], "max_size": "4K"}, ("/var/log/rooted", "Run as root")),
        ("memory_trim", tight, ("restart on foreign was not done", "Run as root", "polkit")),
        ("memory_trim", {**tight, "token": "wrong-but-long-enough"}, ("refuses the ops token", "token_file")),
        (
            "memory_trim",
            {**tight, "token": None, "token_file": "/etc/shadow"},
            ("/etc/shadow: Permission denied", "Run as root"),
        ),
        ("memory_trim", warm, ("cannot be seen", "as the user of the service")),
        (
            "cpu_relief",
            {"sample_s": 1, "min_percent": 1, "demote": ["while :"], "state_dir": f"{home}/state"},
            ("may not be changed", "Run as root"),
        ),
        ("cpu_relief", {"sample_s": 1}, ("/var/lib/wheels-ops cannot be written: Permission denied", "state_dir")),
        ("cache_purge", {"url": limited, "prefixes": ["response:"]}, ("NOPERM", "+info")),
        ("celery_throttle", {"redis_url": limited, "wait_timeout": 0}, ("NOPERM", "+type")),
    ]

    foreseen = [
        (name, wanted) for name, _arguments, wanted in cases if "Run as root" in wanted or "state_dir" in wanted
    ]

    def problem(case: t.Tuple[str, t.Dict[str, t.Any], t.Tuple[str, ...]]) -> t.List[t.Any]:
        name, arguments, wanted = case
        found: t.List[t.Any] = []
        for check_mode in (True, False) if (name, wanted) in foreseen else (False,):
            result = host.module(name, arguments, check_mode=check_mode, user=USER)
            missing = [word for word in wanted if word not in str(result["msg"])]
            if missing or result.get("changed") or "Defect" in result["msg"] or "word@" in json.dumps(result):
                found.append((name, check_mode, missing, result.get("changed"), result["msg"]))
        return found

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        problems = [entry for found in pool.map(problem, cases) for entry in found]
    host.run("systemctl", "stop", "hog")
    assert not problems, "\n".join(map(str, problems))


def test_the_health_monitor_runs_by_its_timer(host: ContainerHost) -> None:
    """The role on a host with systemd: its timer runs the monitor, a critical host shows as a failed unit, and all of
    it can be taken away.
    """
    variables = {
        "wheels_ops_hosts": "all",
        "ansible_python_interpreter": sys.executable,
        "wheels_ops_venv": sys.prefix,
        "monitoring_subjects": ["disk"],
        "wheels_ops_filesystems": [],
        "wheels_ops_log_directories": ["/var/log/pam"],
        "wheels_ops_disk_budgets": {"/var/log/pam": 10_000_000},
        "monitoring_recovery_scheduled": True,
    }
    text = "- ansible.builtin.import_playbook: wheels.ops.monitor\n"
    host.run("mkdir", "-p", "/var/log/pam", "/production/scripts")
    host.write("/production/scripts/other.py", "")
    output = host.playbook(text, "-e", json.dumps(variables))
    assert "failed=0" in output, output
    for name in ("monitor", "recovery"):
        assert host.show(f"wheels-ops-{name}.timer", "ActiveState") == "active", output
        assert host.run("systemctl", "is-enabled", f"wheels-ops-{name}.timer").stdout.strip() == "enabled"
        assert host.show(f"wheels-ops-{name}.timer", "NextElapseUSecRealtime"), "within a quarter of an hour"
    host.run("systemctl", "start", "wheels-ops-monitor.service")
    assert json.loads(host.run("cat", "/var/lib/wheels-ops/health.json").stdout)["status"] == "ok"
    assert host.show("wheels-ops-monitor.service", "Result") == "success"
    host.run("sh", "-c", "head -c 12000000 /dev/urandom > /var/log/pam/data")
    host.run("systemctl", "start", "wheels-ops-monitor.service", check=False)
    assert host.show("wheels-ops-monitor.service", "ExecMainStatus") == "2"
    assert "wheels-ops-monitor.service" in host.run("systemctl", "--failed", "--plain").stdout
    command = "cd /production && python3 production_health_monitor.py"
    assert "CRITICAL" in host.run("sh", "-c", command, check=False).stdout, (
        "the report's line for cron, under the system's Python"
    )
    output = host.playbook(text, "-e", json.dumps({**variables, "monitoring_programs_state": "absent"}))
    assert "failed=0" in output, output
    assert host.show("wheels-ops-monitor.timer", "LoadState") == "not-found"
    left = host.run(
        "find",
        "/opt/wheels-ops",
        "/etc/systemd/system",
        "/etc/wheels-ops",
        "/production",
        "(",
        "-type",
        "f",
        "-o",
        "-type",
        "l",
        ")",
    ).stdout
    assert not [
        name for name in left.splitlines() if "wheels" in name or "/production_health" in name or "/automated" in name
    ], left
    assert "/production/scripts/other.py" in left
    assert host.run("test", "-s", "/var/lib/wheels-ops/monitor.jsonl", check=False).returncode == 0, "the history stays"
