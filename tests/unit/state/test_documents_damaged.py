# SPDX-License-Identifier: GPL-3.0-or-later
"""Every file of the state directory, damaged in every way, under everything that reads it: a result, or an error that
names the file.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
import typing as t
from dataclasses import replace
from pathlib import Path

import pytest

from wheels_ops.checks import suite
from wheels_ops.core.results import OpsError
from wheels_ops.remedies import backend_patch, cpu_relief, recovery_state
from wheels_ops.remedies.memory.notes import Note, Notes
from wheels_ops.remedies.plan import Policy
from wheels_ops.report import performance
from wheels_ops.standalone import monitor, recovery
from wheels_ops.standalone.settings import Settings
from wheels_ops.state import deployments, history, requests
from wheels_ops.state.history import HistoryRecord
from wheels_ops.state.restarts import Ledger

OLD, NEW = "20250730T0211", "20250731T0211"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory with one of every file, as the product writes them, and the tree that it is about."""
    place = tmp_path_factory.mktemp("whole")
    root, state = place / "production", place / "state"
    root.mkdir()
    (root / "one.py").write_text("old = 1\n")
    for name, content in ((OLD, b"new = 1\n"), (NEW, b"newer = 1\n")):
        deployments.begin(str(state), name, holder="one")
        backend_patch.install(
            str(state), name, backend_patch.Request(root=str(root), files={"one.py": content}), backend_patch.Proof()
        )
        deployments.end(str(state), name, holder="one", state=deployments.FINISHED)
    deployments.hold(str(state), kind="maintenance", holder="elsewhere:1:1:a-b-c")
    ledger = Ledger(state)
    ledger.add(event="begin", service="web")
    ledger.add(event="end", service="web", outcome="failed")
    result = {
        "action": "disk_cleanup",
        "success": True,
        "outcome": "done",
        "message": "x",
        "timestamp": "2025-07-30T02:11:00Z",
        "changed": True,
    }
    history.append(
        state / "history.jsonl",
        HistoryRecord(action="recover", before=("disk",), outcome="healthy", results=(result,)),
    )
    for _ in range(monitor.ENOUGH):
        history.append(state / "monitor.jsonl", HistoryRecord(action="monitor", checks={"http": "ok"}))
    Notes(state).keep("trim", "web", "host", Note(time.time(), 1, 2, (3,)))
    held = {
        "pid": 1,
        "born": 0.5,
        "threads": {"1": {"policy": 0, "nice": 0}},
        "until": 1.0,
        "session": "",
        "session_nice": 0,
    }
    (state / "cpu_relief.json").write_text(json.dumps([held]))
    (state / "requests").mkdir()
    (state / "requests/one.json").write_text(json.dumps({"kind": "recover", "reason": "a person asked", "time": "now"}))
    (state / "metrics").mkdir()
    with sqlite3.connect(state / "metrics/metrics.sqlite") as database:
        database.execute("create table metric (id integer, name text)")
        database.execute(
            "create table sample (metric integer, step integer, slot integer, total real, count real, low real, high"
            " real)"
        )
        database.execute("insert into metric values (1, 'memory_percent')")
        database.execute("insert into sample values (1, 900, 9999999, 1.0, 1.0, 1.0, 1.0)")
    database.close()
    return place


FILES = (
    "deploy.lock",
    f"deployments/{OLD}/manifest.json",
    f"deployments/{NEW}/manifest.json",
    f"deployments/{OLD}/originals/*",
    f"deployments/{NEW}/originals/*",
    "restarts.jsonl",
    "history.jsonl",
    "monitor.jsonl",
    "memory.json",
    "cpu_relief.json",
    "requests/one.json",
    "metrics/metrics.sqlite",
)


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _leaves(value: t.Any, other: t.Any) -> t.Any:
    """A JSON value with every leaf but the ids and the states replaced."""
    if isinstance(value, dict):
        return {key: entry if key in ("id", "state") else _leaves(entry, other) for key, entry in value.items()}
    if isinstance(value, list) and value:
        return [_leaves(entry, other) for entry in value]
    return other


def _with_leaves(other: t.Any) -> t.Callable[[Path], None]:
    def damage(path: Path) -> None:
        try:
            lines = [json.dumps(_leaves(json.loads(line), other)) for line in path.read_text().splitlines()]
        except ValueError:
            try:
                lines = [json.dumps(_leaves(json.loads(path.read_text()), other))]
            except ValueError:
                lines = [json.dumps(other)]
        path.write_text("\n".join(lines) + "\n")

    return damage


DAMAGES: t.Dict[str, t.Callable[[Path], t.Any]] = {
    "one bad byte": lambda path: path.write_bytes(path.read_bytes()[:-9] + b"\xff" + path.read_bytes()[-9:]),
    "a bad line": lambda path: path.write_bytes(path.read_bytes() + b"\xff\n"),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(b"\0" * 4096),
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 20),
    "a text": lambda path: path.write_text('"held"\n'),
    "a list": lambda path: path.write_text('[1, "x", null, []]\n'),
    "a number": lambda path: path.write_text("4711\n"),
    "null": lambda path: path.write_text("null\n"),
    "an empty object": lambda path: path.write_text("{}\n"),
    "nested": lambda path: path.write_text("[" * 100_000 + "\n"),
    "nested objects": lambda path: path.write_text('{"files":' * 100_000 + "\n"),
    "a directory": _directory,
    "a pipe": _fifo,
    "a link to what never ends": _endless,
    "texts": _with_leaves("x"),
    "surrogates": _with_leaves("\ud800\0"),
    "numbers": _with_leaves(-1),
    "large numbers": _with_leaves(10**30),
    "not a number": _with_leaves(float("nan")),
    "infinite": _with_leaves(float("inf")),
    "lists": _with_leaves([]),
    "objects": _with_leaves({}),
    "true": _with_leaves(True),
    "nulls": _with_leaves(None),
}
CHECKS = suite.Options(subjects=("disk",), filesystems=())


def _settings(state: Path) -> Settings:
    return replace(Settings(checks=CHECKS), state_dir=state)


def _note(state: Path) -> None:
    settings = _settings(state)
    report = monitor.ProductionHealthMonitor(settings).report_of(suite.run(settings.checks))
    monitor.note(settings, report)


def _tried(state: Path) -> None:
    for each in recovery.AutomatedRecovery(_settings(state)).get_recovery_history(5):
        assert f"{each['timestamp']}  {each['action']:20} {each['outcome']:8} {each['message']}"


def _keep(state: Path) -> None:
    Notes(state).keep("trim", "web", "host", Note(time.time(), 1, 2))


def _end(state: Path) -> None:
    deployments.end(str(state), NEW, holder="one", state=deployments.FINISHED)


#: These change nothing.
READERS: t.Dict[str, t.Callable[[Path], t.Any]] = {
    "query": lambda state: deployments.query(str(state)),
    "begin recovery": lambda state: deployments.begin(str(state), "recover-1", holder="two", check_mode=True),
    "latest": lambda state: backend_patch.latest(str(state)),
    "restore, predicted": lambda state: backend_patch.restore(str(state), NEW, check_mode=True, want_diff=True),
    "ledger": lambda state: Ledger(state).blocked("web", max_restarts=3, window=3600, cooldown=60),
    "history": lambda state: history.read(state / "history.jsonl"),
    "recoveries": lambda state: performance.recoveries(history.read(state / "history.jsonl"), 0),
    "metrics": lambda state: performance.read_store(state / "metrics/metrics.sqlite", 0),
    "requests": (lambda state: json.dumps(requests.handle(state / "requests").extra, ensure_ascii=False).encode()),
    "recovery history": _tried,
    "recovery, state": lambda state: recovery_state.read(state, [{"name": "web"}], Policy()),
    "memory": lambda state: Notes(state).last("trim", "web", "host"),
    "relief": lambda state: cpu_relief.run(cpu_relief.Options(state="normal", state_dir=str(state)), check_mode=True),
}
#: These change something: each gets a directory of its own, where a file that it reads is damaged.
WRITERS: t.Dict[str, t.Tuple[str, t.Callable[[Path], t.Any]]] = {
    "begin": (
        "deploy",
        lambda state: deployments.begin(str(state), "20250801T0211", holder="two", force="elsewhere:1:1:a-b-c"),
    ),
    "hold": ("deploy", lambda state: deployments.hold(str(state), kind="rollback", holder="two")),
    "let go": ("deploy.lock", lambda state: deployments.let_go(str(state), holder="elsewhere:1:1:a-b-c")),
    "end": ("deploy", _end),
    "restore": ("deployments", lambda state: backend_patch.restore(str(state), NEW)),
    "restore the old one": ("deployments", lambda state: backend_patch.restore(str(state), OLD)),
    "ledger, written": ("restarts", lambda state: Ledger(state).add(event="begin", service="web")),
    "history, written": (
        "history",
        lambda state: history.append(state / "history.jsonl", HistoryRecord(action="recover")),
    ),
    "monitor": ("monitor", _note),
    "memory, written": ("memory", _keep),
}


def _copy(whole: Path, place: Path) -> Path:
    """The state directory for one trial; its manifests are about the same tree."""
    shutil.copytree(whole / "state", place)
    return place


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_damage_is_passed_over_or_named(whole: Path, tmp_path: Path, name: str, damage: str) -> None:
    tree = whole / "production/one.py"
    assert tree.read_text() == "newer = 1\n"
    common = _copy(whole, tmp_path / "common")
    DAMAGES[damage](next(common.glob(name)))
    trials = [(reader, read, common) for reader, read in READERS.items()]
    for reader, (prefix, read) in WRITERS.items():
        if name.startswith(prefix):
            state = _copy(whole, tmp_path / reader)
            DAMAGES[damage](next(state.glob(name)))
            trials.append((reader, read, state))
    for reader, read, state in trials:
        path = next(state.glob(name))
        try:
            read(state)
        except OpsError as error:
            named = str(path) in str(error) or (path.parent.parent.name in str(error) and "deployments" in name)
            held = "holds this host" in str(error) and "deploy.lock" not in name
            assert (named or held) and error.hint, f"{reader}: {error}"
        finally:
            changed = tree.read_text()
            if changed != "newer = 1\n":
                tree.write_text("newer = 1\n")
        assert changed in ("newer = 1\n", "new = 1\n", "old = 1\n"), f"{reader} left a half"


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name != "a bad line"])
def test_a_damaged_manifest_of_an_old_deployment_blocks_its_own_rollback_alone(
    whole: Path, tmp_path: Path, damage: str
) -> None:
    state = _copy(whole, tmp_path / "state")
    (state / "deploy.lock").unlink()
    path = state / f"deployments/{OLD}/manifest.json"
    DAMAGES[damage](path)
    result = deployments.query(str(state))
    assert result.extra["damaged"] == [{"path": str(path), "reason": result.extra["damaged"][0]["reason"]}]
    assert backend_patch.latest(str(state)) == NEW
    for kind in deployments.KINDS:
        assert str(path) in deployments.hold(str(state), kind=kind, holder="one").warnings[0]
    with pytest.raises(OpsError, match=f"{path} is damaged.*Deployment {OLD} cannot be rolled back"):
        backend_patch.restore(str(state), OLD)
    try:
        assert backend_patch.restore(str(state), NEW).changed
        deployments.end(str(state), NEW, holder="one", state=deployments.ROLLED_BACK)
        # Which is the newest now cannot be told: nothing is rolled back by guess.
        with pytest.raises(OpsError, match=f"{OLD} is the newest.*wheels_ops_deployment_id"):
            backend_patch.latest(str(state))
    finally:
        (whole / "production/one.py").write_text("newer = 1\n")


@pytest.mark.parametrize("name", ["restarts.jsonl", "history.jsonl", "monitor.jsonl"])
def test_a_bad_line_is_passed_over_and_counted_and_the_others_are_read(whole: Path, tmp_path: Path, name: str) -> None:
    state = _copy(whole, tmp_path / "state")
    path = state / name
    path.write_bytes(b'\xff\n"text"\n' + path.read_bytes() + b'[1]\n{"time": [], "service": "web"}\n{"time"')
    if name == "restarts.jsonl":
        ledger = Ledger(state)
        assert len(ledger.starts("web", 3600)) == 1 and ledger.damaged == 5
        ledger.add(event="begin", service="web")
        assert len(ledger.starts("web", 3600)) == 2, "a torn line swallows no new one"
    else:
        records, damaged = history.read_and_count(path)
        assert len(records) == (1 if name == "history.jsonl" else monitor.ENOUGH) and damaged == 5


def test_a_damaged_lock_is_refused_and_expires(whole: Path, tmp_path: Path) -> None:
    state = _copy(whole, tmp_path / "state")
    lock = state / "deploy.lock"
    lock.write_text('"held"')
    with pytest.raises(OpsError, match=f"{lock} is damaged: it holds a text.*remove the file"):
        deployments.hold(str(state), kind="deploy", holder="two")
    os.utime(lock, (time.time() - deployments.LOCK_EXPIRES - 60,) * 2)
    assert "It was taken over" in deployments.hold(str(state), kind="deploy", holder="two").warnings[0]


@pytest.mark.parametrize("damage", ["missing", "one byte"])
def test_an_original_that_is_not_what_was_kept_stops_the_rollback_before_the_first_file(
    whole: Path, tmp_path: Path, damage: str
) -> None:
    state = _copy(whole, tmp_path / "state")
    original = next((state / f"deployments/{NEW}/originals").iterdir())
    if damage == "missing":
        original.unlink()
    else:
        original.write_bytes(original.read_bytes().replace(b"1", b"2"))
    for check_mode in (True, False):
        with pytest.raises(OpsError, match=f"The original of .*: {original}.*Nothing was changed"):
            backend_patch.restore(str(state), NEW, check_mode=check_mode)
    assert (whole / "production/one.py").read_text() == "newer = 1\n"
    assert deployments.Journal(str(state)).read(NEW)["state"] == deployments.FINISHED


@pytest.mark.parametrize("begin", [("20250801T0211", "deploy"), ("recover-1", "recover")])
def test_a_file_where_the_deployments_belong_is_named_and_the_lock_is_not_kept(
    tmp_path: Path, begin: t.Tuple[str, str]
) -> None:
    (tmp_path / "deployments").write_text("x")
    assert [each["path"] for each in deployments.query(str(tmp_path)).extra["damaged"]] == [
        str(tmp_path / "deployments")
    ]
    with pytest.raises(OpsError, match=f"{tmp_path}/deployments is damaged: it is no directory"):
        deployments.begin(str(tmp_path), begin[0], kind=begin[1], holder="one")
    assert not (tmp_path / "deploy.lock").exists()


def test_a_pipe_beside_the_history_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".history.jsonl.lock")
    history.append(tmp_path / "history.jsonl", HistoryRecord(action="recover"))
    assert len(history.read(tmp_path / "history.jsonl")) == 1
