# SPDX-License-Identifier: GPL-3.0-or-later
"""The lock and the journal of a deployment."""

from __future__ import annotations

import hashlib
import json
import os
import typing as t
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from wheels_ops.core.results import OpsError
from wheels_ops.host import marked_blocks
from wheels_ops.remedies import backend_patch
from wheels_ops.state import deployments, documents, leftovers


def test_two_at_once_then_one_after_the_other(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    assert deployments.begin(state, "a", holder="one").extra["resumed"] is False
    with pytest.raises(OpsError, match="Another deployment holds this host: one"):
        deployments.begin(state, "b", holder="two")
    deployments.end(state, "a", holder="one", state=deployments.FINISHED)
    assert not (tmp_path / "state/deploy.lock").exists()
    assert deployments.begin(state, "b", holder="two").extra["deployment_id"] == "b"


@pytest.mark.parametrize("how", ["dead", "forced", "old"])
def test_a_lock_is_taken_over_from_the_dead(tmp_path: Path, how: str) -> None:
    state = str(tmp_path)
    deployments.begin(state, "a", holder="one")
    if how == "old":
        lock = tmp_path / "deploy.lock"
        entry = json.loads(lock.read_text())
        lock.write_text(json.dumps({**entry, "since": entry["since"] - deployments.LOCK_EXPIRES - 1}))
    force = "one" if how == "forced" else ""
    result = deployments.begin(state, "b", holder="two", dead_holders=["one"] if how == "dead" else [], force=force)
    assert result.extra == {"deployment_id": "a", "resumed": True, "holder": "one"}
    assert json.loads((tmp_path / "deploy.lock").read_text())["holder"] == "two"


def test_check_mode_leaves_nothing(tmp_path: Path) -> None:
    state = tmp_path / "state"
    assert deployments.begin(str(state), "a", holder="one", check_mode=True).extra["deployment_id"] == "a"
    assert not state.exists()


def test_a_deployment_without_files_leaves_no_journal(tmp_path: Path) -> None:
    state = str(tmp_path)
    deployments.begin(state, "a", holder="one")
    deployments.end(state, "a", holder="one", state=deployments.FINISHED)
    assert deployments.query(state).extra["in_force"] == []
    with pytest.raises(OpsError, match="There is no deployment a"):
        deployments.Journal(state).read("a")


def _deploy(place: Path, name: str, content: bytes) -> None:
    (place / "tree").mkdir(exist_ok=True)
    state = str(place / "state")
    deployments.begin(state, name, holder="one")
    request = backend_patch.Request(root=str(place / "tree"), files={"one.py": content})
    backend_patch.install(state, name, request, backend_patch.Proof())
    deployments.end(state, name, holder="one", state=deployments.FINISHED)


@pytest.mark.parametrize("check_mode", [False, True])
def test_an_id_that_is_in_use_keeps_its_originals(tmp_path: Path, check_mode: bool) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/one.py").write_text("old = 1\n")
    _deploy(tmp_path, "a", b"new = 1\n")
    state = str(tmp_path / "state")
    with pytest.raises(OpsError, match="There is a deployment a on this host already"):
        deployments.begin(state, "a", holder="two", check_mode=check_mode)
    assert not (tmp_path / "state/deploy.lock").exists()
    backend_patch.restore(state, "a")
    assert (tmp_path / "tree/one.py").read_text() == "old = 1\n"


def test_the_newest_is_rolled_back_although_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/one.py").write_text("old = 1\n")
    with monkeypatch.context() as ahead:
        ahead.setattr(deployments, "now", lambda: "2099-12-31T23:59:59Z")
        _deploy(tmp_path, "20991231T235959Z", b"new = 1\n")
    _deploy(tmp_path, "20250801T021100Z", b"newer = 1\n")
    state = str(tmp_path / "state")
    assert backend_patch.latest(state) == "20250801T021100Z"
    backend_patch.restore(state, backend_patch.latest(state))
    assert (tmp_path / "tree/one.py").read_text() == "new = 1\n"


def test_a_deployment_that_was_killed_before_its_first_file_leaves_no_originals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/one.py").write_text("old = 1\n")
    state = str(tmp_path / "state")
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        deployments.begin(state, "a", holder="one")

        def kill(_journal: t.Any, _manifest: t.Any) -> t.NoReturn:
            raise KeyboardInterrupt

        killed.setattr(deployments.Journal, "write", kill)
        backend_patch.install(
            state,
            "a",
            backend_patch.Request(root=str(tmp_path / "tree"), files={"one.py": b"new = 1\n"}),
            backend_patch.Proof(),
        )
    assert list((tmp_path / "state/deployments/a/originals").iterdir())
    deployments.hold(state, kind="rollback", holder="two", dead_holders=["one"])
    deployments.end(state, "a", holder="two", state=deployments.ROLLED_BACK)
    assert not (tmp_path / "state/deployments/a").exists()


@pytest.mark.parametrize("name", ["../x", ".hidden", "a/b", ""])
def test_ids_are_no_paths(tmp_path: Path, name: str) -> None:
    with pytest.raises(OpsError, match="no deployment id"):
        deployments.begin(str(tmp_path), name, holder="one")


@pytest.mark.parametrize("nth", [0, 1])
def test_a_full_disk_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    """The lock is the first file that is written, the journal the second."""
    state = tmp_path / "state"
    writes: t.List[Path] = []
    real = documents.write_atomically

    def full(path: Path, content: bytes, **options: t.Any) -> None:
        writes.append(path)
        if len(writes) == nth + 1:
            raise OpsError(f"Cannot write {path}: No space left on device.")
        real(path, content, **options)

    monkeypatch.setattr(documents, "write_atomically", full)
    with pytest.raises(OpsError, match="No space left"):
        deployments.begin(str(state), "a", holder="one")
    assert [path for path in state.rglob("*") if path.is_file()] == []
    assert deployments.begin(str(state), "b", holder="two").extra["resumed"] is False


def test_of_many_at_once_one_gets_the_lock(tmp_path: Path) -> None:
    def begin(number: int) -> bool:
        try:
            deployments.begin(str(tmp_path), f"d{number}", holder=f"run {number}")
        except OpsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(begin, range(8))) == 1


def test_what_failed_before_is_told_to_whoever_takes_it_back(tmp_path: Path) -> None:
    state = str(tmp_path)
    deployments.begin(state, "a", holder="one", failing=["http"])
    # The run that goes on after an interruption measures a half-changed host.
    deployments.begin(state, "b", holder="one", failing=["http", "tts"])
    assert deployments.end(state, "a", holder="one", state=deployments.ROLLED_BACK).extra["failing_before"] == ["http"]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make files of another user")
@pytest.mark.parametrize("name", ["bin/python", "bin", "lib/python3.11/site-packages/x.pth", ".."])
def test_an_interpreter_of_a_lesser_user_is_refused_and_not_run(tmp_path: Path, name: str) -> None:
    prefix = tmp_path / "their/venv"
    packages = prefix / "lib/python3.11/site-packages"
    for directory in (prefix / "bin", packages):
        directory.mkdir(parents=True)
    (prefix / "pyvenv.cfg").touch()
    (packages / "x.pth").touch()
    python = prefix / "bin/python"
    python.write_text(f"#!/bin/sh\ntouch {tmp_path}/run\n")
    python.chmod(0o755)
    state = str(tmp_path / "state")
    assert deployments.query(state, interpreter=str(python)).extra["holder"] == ""
    assert deployments.query(state, interpreter=str(prefix / "bin/absent")).extra["holder"] == ""
    os.chown(prefix / name, 65534, 65534)
    with pytest.raises(OpsError, match="other than root control it: .* belongs to user 65534"):
        deployments.query(state, interpreter=str(python))
    assert not (tmp_path / "run").exists()


# -- the shape of a manifest
# -----------------------------------------------------------------------------------------------

OLD, NEW, NEWEST = (hashlib.sha256(content).hexdigest() for content in (b"old", b"new", b"newest"))
ENTRY: t.Dict[str, t.Any] = {
    "original": OLD,
    "mode": 0o644,
    "uid": 0,
    "gid": 0,
    "mtime_ns": 1,
    "installed": [NEW],
    "made_directories": [],
}
MANIFEST: t.Dict[str, t.Any] = {
    "id": "a",
    "kind": "deploy",
    "state": "finished",
    "step": "end",
    "began_at": "2025-07-30T02:11:00Z",
    "failing_before": ["http"],
    "files": {"/x": ENTRY},
}


def keep(state: Path, manifest: t.Mapping[str, t.Any], name: str = "") -> deployments.Journal:
    """A manifest as another run left it."""
    place = state / "deployments" / (name or str(manifest["id"]))
    place.mkdir(parents=True, exist_ok=True)
    (place / "manifest.json").write_text(json.dumps(manifest))
    return deployments.Journal(str(state))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        *({"state": state} for state in ("begun", "rolling_back", "rolled_back")),
        *({"kind": kind} for kind in deployments.KINDS),
        {"failing_before": []},
        {"files": {}},
        *(
            {"files": {"/x": {**ENTRY, **entry}}}
            for entry in (
                {"original": None},
                {"original": None, "mode": None},
                {"mode": 0},
                {"mode": 0o7777},
                {"uid": 2**32 - 2, "gid": 2**32 - 2},
                {"mtime_ns": -(2**63)},
                {"mtime_ns": 2**63 - 1},
                {"mtime_ns": 0},
                {"installed": [], "made_directories": ["/y", "/z"]},
            )
        ),
    ],
)
def test_a_manifest_of_the_right_shape_is_read(tmp_path: Path, changes: t.Dict[str, t.Any]) -> None:
    assert keep(tmp_path, {**MANIFEST, **changes}).find("a") == {**MANIFEST, **changes}


@pytest.mark.parametrize("key", ["kind", "step", "failing_before"])
def test_what_the_first_version_did_not_write_may_be_missing(tmp_path: Path, key: str) -> None:
    manifest = {name: value for name, value in MANIFEST.items() if name != key}
    assert keep(tmp_path, manifest).find("a") == manifest


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"id": "b"}, "its id is not a"),
        ({"state": "sealed"}, "it has no known state"),
        ({"state": None}, "it has no known state"),
        ({"began_at": None}, "began_at is no time"),
        ({"began_at": "2025-07-30"}, "began_at is no time"),
        ({"kind": "other"}, "it has no known kind"),
        ({"kind": None}, "it has no known kind"),
        ({"step": 3}, "step is no text"),
        ({"failing_before": "http"}, "failing_before is no list of texts"),
        ({"failing_before": ["http", 1]}, "failing_before is no list of texts"),
        ({"files": None}, "files is null"),
        ({"files": []}, "files is a list"),
        *(({"files": {path: ENTRY}}, f"its entry for {path!r} has another shape") for path in ("x", "/y/../x", "/x\0")),
        *(
            ({"files": {"/w": ENTRY, "/x": other}}, "its entry for '/x' has another shape")
            for other in t.cast(
                "t.Sequence[t.Any]",
                (
                    [],
                    None,
                    *(
                        {**ENTRY, **wrong}
                        for wrong in (
                            {"installed": None},
                            {"installed": [1]},
                            {"made_directories": None},
                            {"made_directories": [None]},
                            {"original": 0},
                            {"original": "0"},
                            {"original": OLD.upper()},
                            {"original": OLD + "0"},
                            {"mode": -1},
                            {"mode": 0o10000},
                            {"mode": None},
                            {"mode": True},
                            {"uid": -1},
                            {"uid": 2**32 - 1},
                            {"uid": True},
                            {"uid": "0"},
                            {"gid": -1},
                            {"gid": 2**32 - 1},
                            {"gid": 0.0},
                            {"mtime_ns": -(2**63) - 1},
                            {"mtime_ns": 2**63},
                            {"mtime_ns": None},
                        )
                    ),
                    *({name: value for name, value in ENTRY.items() if name != key} for key in ENTRY),
                ),
            )
        ),
    ],
)
def test_a_manifest_of_another_shape_is_damaged(tmp_path: Path, changes: t.Dict[str, t.Any], reason: str) -> None:
    journal = keep(tmp_path, {**MANIFEST, **changes}, "a")
    with pytest.raises(documents.Damaged) as caught:
        journal.find("a")
    assert caught.value.reason == reason
    assert str(caught.value).startswith(str(tmp_path / "deployments/a/manifest.json"))
    assert (
        f"Deployment a cannot be rolled back from it: restore the file from a backup, or move {tmp_path}/deployments/a"
        " away" in caught.value.hint
    )


# -- what the journals of a host say together
# ------------------------------------------------------------------------------


def entry(name: str, state: str = "finished", minute: int = 11, **changes: t.Any) -> t.Dict[str, t.Any]:
    return {**MANIFEST, "id": name, "state": state, "began_at": f"2025-07-30T02:{minute:02}:00Z", **changes}


def test_manifests_are_given_oldest_first_and_damage_apart(tmp_path: Path) -> None:
    for name, minute in (("c", 5), ("a", 7), ("d", 5), ("b", 6)):
        keep(tmp_path, entry(name, minute=minute))
    keep(tmp_path, {}, "bad")
    keep(tmp_path, entry(".hidden"))
    (tmp_path / "deployments/empty").mkdir()
    manifests, damaged = deployments.Journal(str(tmp_path)).scan()
    assert [manifest["id"] for manifest in manifests] == ["c", "d", "b", "a"]
    assert [each.path for each in damaged] == [tmp_path / "deployments/bad/manifest.json"]
    assert deployments.Journal(str(tmp_path)).all() == manifests


def test_the_kind_of_an_old_manifest_is_in_its_id() -> None:
    assert [
        deployments.kind_of(each) for each in ({"id": "recover-1"}, {"id": "a"}, {"id": "recover-1", "kind": "deploy"})
    ] == ["recover", "deploy", "deploy"]


@pytest.mark.parametrize("name", ["a\0b", "..", "."])
def test_more_ids_that_are_no_paths(tmp_path: Path, name: str) -> None:
    with pytest.raises(OpsError, match="no deployment id"):
        deployments.Journal(str(tmp_path)).directory(name)


def test_an_unknown_deployment_is_refused_with_the_last_five(tmp_path: Path) -> None:
    journal = deployments.Journal(str(tmp_path))
    with pytest.raises(OpsError) as caught:
        journal.read("x")
    assert caught.value.hint == "Known: none."
    for number in range(6):
        keep(tmp_path, entry(f"d{number}"))
    with pytest.raises(OpsError) as caught:
        journal.read("x")
    assert caught.value.hint == "Known: d1, d2, d3, d4, d5."
    assert journal.read("d3")["id"] == "d3"


def test_in_force_is_what_was_not_rolled_back_newest_first(tmp_path: Path) -> None:
    cases: t.Tuple[t.Tuple[str, str, t.Dict[str, t.Any]], ...] = (
        ("a", "finished", {}),
        ("b", "rolled_back", {}),
        ("c", "begun", {}),
        ("d", "rolling_back", {}),
        ("e", "finished", {}),
        ("f", "begun", {"kind": "recover"}),
    )
    for name, state, changes in cases:
        keep(tmp_path, entry(name, state, **changes))
    journal = deployments.Journal(str(tmp_path))
    assert [manifest["id"] for manifest in journal.in_force()] == ["e", "d", "c", "a"]
    unfinished = journal.open_one()
    assert unfinished is not None and unfinished["id"] == "d"
    assert journal.latest() == "d", "what was interrupted is rolled back first"
    answer = deployments.query(str(tmp_path)).extra
    assert (answer["in_force"], answer["unfinished"], answer["deployment_id"], answer["holder"]) == (
        ["e", "d", "c", "a"],
        "d",
        "d",
        "",
    )
    assert (answer["resumed"], answer["damaged"]) == (False, [])


def test_the_newest_in_force_is_rolled_back_where_none_is_named(tmp_path: Path) -> None:
    journal = deployments.Journal(str(tmp_path))
    with pytest.raises(OpsError, match="No deployment is in force"):
        journal.latest()
    keep(tmp_path, entry("20250730T0211"))
    keep(tmp_path, entry("20250731T0211", minute=12))
    keep(tmp_path, entry("20250801T0211", "rolled_back", minute=13))
    assert journal.latest() == "20250731T0211"
    keep(tmp_path, {}, "20250730T0300")
    keep(tmp_path, {}, "recover-20250901T0211")
    assert journal.latest() == "20250731T0211", "an older one, or that of a recovery, does not matter"
    answer = deployments.query(str(tmp_path))
    assert answer.extra["deployment_id"] == "20250731T0211" and answer.extra["unfinished"] == ""
    assert answer.msg == "In force: 20250731T0211, 20250730T0211."
    assert [(each["path"], each["reason"]) for each in answer.extra["damaged"]] == [
        (str(tmp_path / f"deployments/{name}/manifest.json"), f"its id is not {name}")
        for name in ("20250730T0300", "recover-20250901T0211")
    ]
    assert len(answer.warnings) == 2 and all(
        f"{each['path']} is damaged" in text for each, text in zip(answer.extra["damaged"], answer.warnings)
    )
    keep(tmp_path, {}, "20250802T0211")
    with pytest.raises(
        OpsError, match="20250802T0211 is the newest deployment in force.*-e wheels_ops_deployment_id=ID"
    ):
        journal.latest()


def test_a_question_to_a_new_host_and_one_with_a_damaged_lock(tmp_path: Path) -> None:
    answer = deployments.query(str(tmp_path))
    assert (answer.changed, answer.msg, answer.warnings) == (False, "In force: no deployment.", [])
    assert answer.extra == {
        "holder": "",
        "resumed": False,
        "deployment_id": "",
        "unfinished": "",
        "in_force": [],
        "drifted": [],
        "partly_rolled_back": [],
        "damaged": [],
    }
    deployments.hold(str(tmp_path), kind="monitor", holder="one")
    assert deployments.query(str(tmp_path)).extra["holder"] == "one"
    (tmp_path / "deploy.lock").write_text("[]")
    answer = deployments.query(str(tmp_path))
    assert answer.extra["holder"] == "" and [each["path"] for each in answer.extra["damaged"]] == [
        str(tmp_path / "deploy.lock")
    ]


# -- rollback and installation note what they do
# ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "files", "after"),
    [
        ("begun", {"/x": ENTRY}, "rolling_back"),
        ("finished", {"/x": ENTRY}, "rolling_back"),
        ("rolled_back", {"/x": ENTRY}, "rolled_back"),
        ("begun", {}, "begun"),
    ],
)
def test_a_rollback_is_noted_where_there_is_something_to_roll_back(
    tmp_path: Path, state: str, files: t.Dict[str, t.Any], after: str
) -> None:
    journal = keep(tmp_path, entry("a", state, files=files))
    journal.note_rollback(journal.read("a"))
    manifest = journal.read("a")
    assert manifest["state"] == after and manifest["files"] == files
    assert (manifest["step"], "rollback_began_at" in manifest) == (
        ("rollback", True) if after != state else ("end", False)
    )


@pytest.mark.parametrize(
    ("state", "installed", "wanted", "after"),
    [
        ("begun", [NEW], {"/x": NEW}, [NEW]),
        ("begun", [NEW], {"/x": NEWEST}, [NEW, NEWEST]),
        ("begun", [NEW, NEWEST], {"/x": NEW}, [NEWEST, NEW]),
        ("begun", [], {"/x": OLD}, [OLD]),
        ("begun", [NEW], {"/y": OLD}, [NEW]),
        ("finished", [NEW], {"/x": NEWEST}, [NEW]),
        ("rolling_back", [NEW], {"/x": NEWEST}, [NEW]),
    ],
)
def test_the_last_content_of_an_installation_is_the_one_that_is_wanted(
    tmp_path: Path, state: str, installed: t.List[str], wanted: t.Dict[str, str], after: t.List[str]
) -> None:
    journal = keep(tmp_path, entry("a", state, files={"/x": {**ENTRY, "installed": installed}, "/z": ENTRY}))
    path = tmp_path / "deployments/a/manifest.json"
    before = path.stat().st_ino
    journal.settle("a", wanted)
    files_now = journal.read("a")["files"]
    assert (files_now["/x"]["installed"], files_now["/z"]["installed"]) == (after, [NEW])
    assert (path.stat().st_ino == before) is (installed == after), "nothing is written where nothing is new"
    journal.settle("none", wanted)


def test_a_journal_is_dropped_with_what_was_kept_for_it(tmp_path: Path) -> None:
    journal = keep(tmp_path, entry("a"))
    for name in ("b", "c", "d"):
        keep(tmp_path, entry(name))
        (tmp_path / f"deployments/{name}/originals").mkdir()
    (tmp_path / "deployments/c/originals" / OLD).write_text("old")
    (tmp_path / "deployments/d/notes").write_text("a person's")
    for name in ("a", "b", "c", "d", "none"):
        journal.drop(name)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "deployments",
        "deployments/d",
        "deployments/d/notes",
    ]


def test_a_step_is_noted(tmp_path: Path) -> None:
    journal = keep(tmp_path, entry("a", "begun"))
    deployments.step(str(tmp_path), "a", "files")
    assert journal.read("a") == entry("a", "begun", step="files")
    with pytest.raises(OpsError, match=r"a was interrupted at step 'files', so nothing is changed here"):
        deployments.hold(str(tmp_path), kind="recover", holder="one")
    keep(tmp_path, {name: value for name, value in entry("a", "begun").items() if name != "step"})
    with pytest.raises(OpsError, match=r"a was interrupted at step 'unknown'"):
        deployments.hold(str(tmp_path), kind="recover", holder="one")


# -- the beginning
# ---------------------------------------------------------------------------------------------------------


def test_what_a_beginning_says_and_writes(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    predicted = deployments.begin(state, "a", holder="one", failing=["http"], check_mode=True)
    result = deployments.begin(state, "a", holder="one", failing=["http"])
    assert result == predicted
    assert (result.changed, result.before, result.after) == (
        False,
        {"lock": "", "unfinished": ""},
        {"lock": "one", "unfinished": ""},
    )
    assert (result.msg, result.warnings) == ("Deployment a begins.", [])
    assert result.extra == {"deployment_id": "a", "resumed": False, "holder": ""}
    manifest = deployments.Journal(state).read("a")
    began_at = manifest.pop("began_at")
    assert began_at.startswith("20") and manifest == {
        "id": "a",
        "kind": "deploy",
        "state": "begun",
        "step": "begun",
        "holder": "one",
        "failing_before": ["http"],
        "files": {},
    }
    assert os.stat(state).st_mode & 0o777 == 0o700
    result = deployments.begin(state, "b", holder="one")
    assert (result.before, result.after) == ({"lock": "one", "unfinished": "a"}, {"lock": "one", "unfinished": ""})
    assert result.msg == "Deployment a was interrupted at step 'begun'; this run finishes it."
    assert [each["id"] for each in deployments.Journal(state).all()] == ["a"]


def test_a_deployment_goes_on_with_an_interrupted_rollback(tmp_path: Path) -> None:
    journal = keep(tmp_path, entry("a", "rolling_back"))
    result = deployments.begin(str(tmp_path), "b", holder="two")
    assert result.msg == "The rollback of deployment a was interrupted; this run finishes it."
    assert journal.read("a") == {**entry("a", "begun"), "holder": "two"}


@pytest.mark.parametrize(
    ("name", "kind", "after"), [("recover-1", "", "recover"), ("a", "", "deploy"), ("a", "maintenance", "maintenance")]
)
def test_the_kind_is_given_or_in_the_id(tmp_path: Path, name: str, kind: str, after: str) -> None:
    deployments.begin(str(tmp_path), name, holder="one", kind=kind)
    assert deployments.Journal(str(tmp_path)).read(name)["kind"] == after
    assert json.loads((tmp_path / "deploy.lock").read_text())["purpose"] == after


def test_a_kind_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    for call in (deployments.begin, deployments.hold):
        words: t.Dict[str, t.Any] = {"name": "a"} if call is deployments.begin else {}
        with pytest.raises(
            OpsError, match="kind must be one of deploy, recover, rollback, maintenance, monitor, prepare, got 'x'"
        ):
            call(str(tmp_path), **words, kind="x", holder="one")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_cannot_write_its_journal_keeps_the_lock_that_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = str(tmp_path)
    deployments.hold(state, kind="deploy", holder="one")

    def full(_journal: deployments.Journal, _manifest: t.Any) -> None:
        raise OpsError("No space left on device.")

    monkeypatch.setattr(deployments.Journal, "write", full)
    with pytest.raises(OpsError, match="No space left"):
        deployments.begin(state, "a", holder="one")
    assert deployments.query(state).extra["holder"] == "one"


def test_hold_if_free_leaves_the_lock_to_another_run_whatever_its_age(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    assert deployments.hold(state, kind="deploy", holder="one", if_free=True).extra["taken"]
    assert deployments.hold(state, kind="deploy", holder="one", if_free=True).extra["taken"]
    lock = tmp_path / "state/deploy.lock"
    # Of a run that is long over for all that can be told here; its controller may know better.
    lock.write_text(json.dumps({"holder": "elsewhere:1:1", "since": 0, "at": "yesterday", "host": "elsewhere"}))
    before = lock.read_text()
    for check_mode in (True, False):
        result = deployments.hold(state, kind="deploy", holder="two", if_free=True, check_mode=check_mode)
        assert result.extra == {"holder": "elsewhere:1:1", "unfinished": "", "taken": False}
        assert lock.read_text() == before
    assert deployments.hold(state, kind="deploy", holder="two").extra["taken"]


def test_hold_refuses_an_interpreter_of_a_lesser_user(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.touch()
    python.chmod(0o777)
    with pytest.raises(OpsError, match=str(python)):
        deployments.hold(str(tmp_path / "state"), kind="deploy", holder="one", interpreter=str(python))
    assert not (tmp_path / "state").exists()


def test_what_a_hold_says(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    predicted = deployments.hold(state, kind="rollback", holder="one", check_mode=True)
    result = deployments.hold(state, kind="rollback", holder="one")
    assert result == predicted
    assert (result.changed, result.before, result.after) == (False, {"lock": ""}, {"lock": "one"})
    assert (result.msg, result.extra, result.warnings) == (
        "one holds the lock of this host.",
        {"holder": "", "unfinished": "", "taken": True},
        [],
    )
    keep(tmp_path / "state", {}, "bad")
    result = deployments.hold(state, kind="rollback", holder="two", dead_holders=["one"])
    assert (
        result.before == {"lock": "one"}
        and len(result.warnings) == 2
        and "bad/manifest.json is damaged" in result.warnings[1]
    )


@pytest.mark.parametrize(("name", "refused"), [("", False), ("a", False), ("older", True)])
def test_an_interrupted_deployment_is_rolled_back_before_another(tmp_path: Path, name: str, refused: bool) -> None:
    keep(tmp_path, entry("a", "begun"))
    if refused:
        with pytest.raises(OpsError, match="so older cannot be rolled back before it"):
            deployments.hold(str(tmp_path), kind="rollback", holder="one", deployment_id=name)
    else:
        assert (
            deployments.hold(str(tmp_path), kind="rollback", holder="one", deployment_id=name).extra["unfinished"]
            == "a"
        )
    # Of another kind the id says nothing.
    assert (
        deployments.hold(str(tmp_path), kind="deploy", holder="one", deployment_id="older").extra["unfinished"] == "a"
    )


@pytest.mark.parametrize("kind", deployments.KINDS)
def test_trees_are_swept_by_runs_that_do_not_report_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    sweeps: t.List[t.Tuple[t.Any, t.Any]] = []
    monkeypatch.setattr(
        leftovers, "sweep", lambda root, manifests: sweeps.append((root, [manifest["id"] for manifest in manifests]))
    )
    keep(tmp_path, entry("a"))
    deployments.hold(str(tmp_path), kind=kind, holder="one")
    assert sweeps == ([] if kind in ("deploy", "rollback") else [(tmp_path, ["a"])])


def test_the_journals_of_killed_runs_without_files_are_closed(tmp_path: Path) -> None:
    keep(tmp_path, entry("a", "finished", kind="recover"))
    keep(tmp_path, entry("b", "begun", kind="recover", files={}))
    keep(tmp_path, entry("c", "finished"))
    deployments.hold(str(tmp_path), kind="maintenance", holder="one")
    assert [manifest["id"] for manifest in deployments.Journal(str(tmp_path)).all()] == ["a", "c"]


def test_a_lock_is_given_back(tmp_path: Path) -> None:
    state = str(tmp_path)
    deployments.hold(state, kind="deploy", holder="one")
    result = deployments.let_go(state, holder="two")
    assert (result.before, result.after, result.extra) == ({"lock": "one"}, {"lock": "one"}, {"holder": "one"})
    predicted = deployments.let_go(state, holder="one", check_mode=True)
    assert (tmp_path / "deploy.lock").exists()
    result = deployments.let_go(state, holder="one")
    assert result == predicted and (result.changed, result.before, result.after) == (
        False,
        {"lock": "one"},
        {"lock": ""},
    )
    assert result.msg == "one does not hold the lock of this host." and not (tmp_path / "deploy.lock").exists()


def test_a_state_directory_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: Path, **_options: t.Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(deployments.Path, "mkdir", refuse)
    with pytest.raises(OpsError, match=f"The state directory {tmp_path}/x cannot be written: Read-only file system"):
        deployments.hold(str(tmp_path / "x"), kind="deploy", holder="one")


# -- the end
# ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> t.Iterator[t.Tuple[Path, Path]]:
    """A state directory with a deployment of one file that is held by ``one``, and that file."""
    state, path = tmp_path / "state", tmp_path / "tree.py"
    path.write_bytes(b"new")
    deployments.begin(str(state), "a", holder="one")
    journal = deployments.Journal(str(state))
    journal.write(
        {**journal.read("a"), "files": {str(path): {**ENTRY, "installed": [NEWEST, NEW]}}, "failing_before": ["http"]}
    )
    yield state, path


def close(state: Path, how: str = "finished", **options: t.Any) -> t.Any:
    return deployments.end(str(state), "a", holder=options.pop("holder", "one"), state=how, **options)


def test_a_deployment_whose_files_are_there_is_finished(tree: t.Tuple[Path, Path]) -> None:
    state, _path = tree
    predicted = close(state, check_mode=True)
    assert deployments.query(str(state)).extra["unfinished"] == "a"
    result = close(state)
    assert result == predicted
    assert (result.changed, result.msg, result.before, result.after) == (
        False,
        "Deployment a: finished.",
        {"state": "begun"},
        {"state": "finished"},
    )
    assert result.extra == {"failing_before": ["http"]}
    manifest = deployments.Journal(str(state)).read("a")
    assert (manifest["state"], manifest["step"]) == ("finished", "end") and manifest["ended_at"] >= manifest["began_at"]
    assert deployments.query(str(state)).extra["holder"] == ""


def test_the_lock_is_kept_where_more_is_to_come(tree: t.Tuple[Path, Path]) -> None:
    state, _path = tree
    close(state, release=False)
    assert deployments.query(str(state)).extra["holder"] == "one"


@pytest.mark.parametrize("content", [b"newest", b"old", None])
def test_a_deployment_with_another_file_is_not_finished(tree: t.Tuple[Path, Path], content: t.Optional[bytes]) -> None:
    """Also not with the content that an earlier try installed."""
    state, path = tree
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OpsError, match=f"1 files are not as deployment a installed them: {path}") as caught:
        close(state)
    assert caught.value.details == {"drifted": [str(path)]}
    assert (
        deployments.query(str(state)).extra["unfinished"] == "a"
        and deployments.query(str(state)).extra["holder"] == "one"
    )


def test_a_file_of_the_backends_own_may_change_around_our_block(tree: t.Tuple[Path, Path]) -> None:
    state, path = tree
    path.write_text(f"mine\n{marked_blocks.BEGIN}\n{marked_blocks.END}\n")
    assert deployments.query(str(state)).extra["drifted"] == []
    assert close(state).after == {"state": "finished"}


def test_a_deployment_that_is_rolled_back_does_not_finish(tree: t.Tuple[Path, Path]) -> None:
    state, _path = tree
    journal = deployments.Journal(str(state))
    journal.note_rollback(journal.read("a"))
    with pytest.raises(OpsError, match="Deployment a is being rolled back"):
        close(state)


@pytest.mark.parametrize("content", [b"new", b"newest"])
def test_a_rollback_with_a_file_of_ours_is_not_closed(tree: t.Tuple[Path, Path], content: bytes) -> None:
    state, path = tree
    path.write_bytes(content)
    with pytest.raises(OpsError, match=f"1 files are still as deployment a installed them: {path}") as caught:
        close(state, "rolled_back")
    assert caught.value.details == {"drifted": [str(path)]}


@pytest.mark.parametrize("content", [b"old", b"a person's", None])
def test_a_rollback_without_a_file_of_ours_is_closed(tree: t.Tuple[Path, Path], content: t.Optional[bytes]) -> None:
    state, path = tree
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    close(state, "rolled_back")
    assert deployments.Journal(str(state)).read("a")["state"] == (
        "partly_rolled_back" if content == b"a person's" else "rolled_back"
    )


def test_a_file_that_was_ours_before_is_closed_as_it_is(tree: t.Tuple[Path, Path]) -> None:
    state, path = tree
    path.write_bytes(b"old")
    journal = deployments.Journal(str(state))
    journal.write({**journal.read("a"), "files": {str(path): {**ENTRY, "installed": [OLD]}}})
    close(state, "rolled_back")
    assert journal.read("a")["state"] == "rolled_back"


def test_without_the_lock_an_open_journal_is_closed_by_its_holder_alone(tree: t.Tuple[Path, Path]) -> None:
    state, _path = tree
    (state / "deploy.lock").unlink()
    with pytest.raises(OpsError, match="Nobody holds this host, so two cannot close a"):
        close(state, holder="two")
    close(state)
    assert deployments.Journal(str(state)).read("a")["state"] == "finished"
    close(state, holder="two")
    assert close(state, check_mode=True).before == {"state": "finished"}


def test_a_host_without_a_journal_has_nothing_to_close(tmp_path: Path) -> None:
    result = deployments.end(str(tmp_path / "none"), "a", holder="one", state="finished")
    assert (result.before, result.extra) == ({"state": ""}, {"failing_before": []}) and not (tmp_path / "none").exists()
    deployments.hold(str(tmp_path), kind="recover", holder="one")
    with pytest.raises(OpsError, match=r"Another run \(recover\) holds this host: one, so two cannot close a"):
        deployments.end(str(tmp_path), "a", holder="two", state="finished")
    deployments.end(str(tmp_path), "a", holder="one", state="finished")
    assert deployments.query(str(tmp_path)).extra["holder"] == ""


def test_drift_is_measured_against_the_newest_installation_of_each_file(tmp_path: Path) -> None:
    one, two, three = (tmp_path / name for name in ("one", "two", "three"))
    keep(
        tmp_path / "state",
        entry("a", minute=1, files={str(one): {**ENTRY, "installed": [OLD]}, str(two): {**ENTRY, "installed": [OLD]}}),
    )
    keep(tmp_path / "state", entry("b", minute=2, files={str(one): {**ENTRY, "installed": [NEW, NEWEST]}}))
    keep(tmp_path / "state", entry("c", "rolled_back", minute=3, files={str(three): ENTRY}))
    journal = deployments.Journal(str(tmp_path / "state"))
    assert deployments.drifted(journal) == [str(one), str(two)]
    one.write_bytes(b"new")
    two.write_bytes(b"old")
    assert deployments.drifted(journal) == []
    one.write_bytes(b"old")
    assert deployments.drifted(journal) == [str(one)]
    one.unlink()
    one.symlink_to(two)
    assert deployments.query(str(tmp_path / "state")).extra["drifted"] == [str(one)], "what a link leads to is not ours"


@pytest.mark.skipif(os.geteuid() == 0, reason="no mode stops root")
def test_journal_of_another_user_is_named(tmp_path: Path) -> None:
    (tmp_path / "deployments").mkdir(mode=0)
    with pytest.raises(OpsError, match=r"deployments cannot be read: Permission denied. Run as root"):
        deployments.query(str(tmp_path))
