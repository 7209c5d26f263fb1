# SPDX-License-Identifier: GPL-3.0-or-later
"""The patched files in a build directory: what is there afterwards, as the disk shows it."""

from __future__ import annotations

import hashlib
import typing as t
from pathlib import Path

import pytest

from tests.support import backend_env
from wheels_ops.core.results import OpsError
from wheels_ops.remedies import backend_patch, build_patch

MAIN = "from fastapi import FastAPI\n\napp = FastAPI()\n"


def tree(root: Path) -> t.Dict[str, t.Tuple[str, int, int]]:
    """Every file below a directory: its content, mode and time of change."""
    return {
        str(path.relative_to(root)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mode,
            path.stat().st_mtime_ns,
        )
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A backend that has two of the files which are replaced, and a worker."""
    for name, text in {
        "app/main.py": MAIN,
        "app/core/cors_config.py": "ORIGINS = []\n",
        "app/services/cache_service.py": "cache = None\n",
        "app/workers/celery.py": "celery_app = None\n",
        "requirements.txt": "fastapi\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_program_and_role_install_the_same(place: Path) -> None:
    """The role reads its defaults and its directory, the program the library and the wheel."""
    role = backend_env.patch_request(place)
    assert build_patch.patched_files() == role.files
    assert {name: list(lines) for name, lines in build_patch.BLOCKS.items()} == role.blocks
    assert {name: list(lines) for name, lines in build_patch.OPTIONAL_BLOCKS.items()} == role.optional_blocks


def test_second_installation_changes_nothing_and_removal_leaves_nothing(place: Path) -> None:
    before, directories = tree(place), {path for path in place.rglob("*") if path.is_dir()}
    predicted = build_patch.install(str(place), check_mode=True)
    assert tree(place) == before
    installed = build_patch.install(str(place))
    assert predicted.changed and predicted.actions == installed.actions and predicted.after == installed.after
    there = tree(place)
    for name, content in build_patch.patched_files().items():
        assert (place / name).read_bytes() == content
    assert "_wheels_ops_install(app, globals())" in (place / "app/main.py").read_text()
    assert "_wheels_ops_install_celery" in (place / "app/workers/celery.py").read_text()
    assert not (place / "app/core/logging.py").exists()
    assert (place / ".wheels-ops/.gitignore").read_text() == "*\n"
    assert not build_patch.install(str(place)).changed
    assert tree(place) == there
    removal = build_patch.remove(str(place), check_mode=True)
    assert tree(place) == there
    assert build_patch.remove(str(place)).actions == removal.actions
    assert tree(place) == before
    assert {path for path in place.rglob("*") if path.is_dir()} == directories
    assert not build_patch.remove(str(place)).changed


def test_killed_installation_is_finished_by_the_next(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(place)
    replace, calls = backend_patch._replace, []

    def killed(*words: t.Any) -> None:
        calls.append(words)
        if len(calls) == 5:
            raise KeyboardInterrupt
        replace(*words)

    monkeypatch.setattr(backend_patch, "_replace", killed)
    with pytest.raises(KeyboardInterrupt):
        build_patch.install(str(place))
    assert tree(place) != before
    assert build_patch.install(str(place)).changed
    assert not build_patch.install(str(place)).changed
    build_patch.remove(str(place))
    assert tree(place) == before


def test_killed_removal_is_finished_by_the_next(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(place)
    build_patch.install(str(place))
    put_back, calls = backend_patch._put_back, []

    def killed(*words: t.Any) -> None:
        calls.append(words)
        if len(calls) == 5:
            raise KeyboardInterrupt
        put_back(*words)

    monkeypatch.setattr(backend_patch, "_put_back", killed)
    with pytest.raises(KeyboardInterrupt):
        build_patch.remove(str(place))
    build_patch.remove(str(place))
    assert tree(place) == before


def test_upgrade_is_removed_with_what_it_replaced(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier release of ours lies below the present one; both go."""
    before = tree(place)
    files = build_patch.patched_files()
    earlier = {**files, "app/core/cors_config.py": b"# an earlier release\n"}
    monkeypatch.setattr(build_patch, "patched_files", lambda: earlier)
    build_patch.install(str(place))
    monkeypatch.setattr(build_patch, "patched_files", lambda: files)
    actions = build_patch.install(str(place)).actions
    assert [each["target"] for each in actions] == [str(place / "app/core/cors_config.py")]
    build_patch.remove(str(place))
    assert tree(place) == before


def test_file_that_somebody_changed_is_refused_and_kept(place: Path) -> None:
    build_patch.install(str(place))
    path = place / "app/core/cors_config.py"
    path.write_text("ORIGINS = ['https://mine.example']\n")
    there = tree(place)
    with pytest.raises(OpsError, match="changed by somebody else") as refused:
        build_patch.install(str(place), want_diff=True)
    assert "mine.example" in refused.value.details["diff"][0]["prepared"]
    assert tree(place) == there
    result = build_patch.remove(str(place))
    assert result.extra["kept"] == [str(path)] and path.read_text() == "ORIGINS = ['https://mine.example']\n"
    assert (place / "app/main.py").read_text() == MAIN
    build_patch.remove(str(place), force=True)
    assert path.read_text() == "ORIGINS = []\n"
    build_patch.remove(str(place))
    copies = [each.read_text() for each in (place / ".wheels-ops").rglob("originals/*")]
    assert "ORIGINS = ['https://mine.example']\n" in copies


@pytest.mark.parametrize(
    "text, accepted",
    [
        ("from .factory import app\n", True),
        ("from .factory import make as app\n", True),
        ("import factory as app\n", True),
        ("from .factory import *\n", True),
        ("try:\n    app = make()\nexcept OSError:\n    app: object = None\n", True),
        ("with settings() as app:\n    pass\n", True),
        ("a, (app, b) = make()\n", True),
        ("import app.core.config\n", False),
        ("def make():\n    app = FastAPI()\n    return app\n", False),
        ("application = FastAPI()\n", False),
        ("class Server:\n    app = None\n", False),
        ("", False),
    ],
)
def test_only_a_module_with_an_application_is_understood(place: Path, text: str, accepted: bool) -> None:
    (place / "app/main.py").write_text(text)
    before = tree(place)
    if accepted:
        assert build_patch.install(str(place)).changed
        return
    with pytest.raises(OpsError, match="has no application by the name `app`"):
        build_patch.install(str(place))
    assert tree(place) == before


@pytest.mark.parametrize(
    "break_it, message",
    [
        (lambda place: (place / "app/main.py").unlink(), "holds no app/main.py"),
        (lambda place: (place / "app/main.py").write_text("app = (\n"), "is not valid Python"),
        (lambda place: (place / "app/main.py").write_bytes(b"app = 1\0"), "is not valid Python"),
        (lambda place: (place / "app/workers/celery.py").write_bytes(b"name = '\xff'\n"), "is not UTF-8"),
        (lambda place: (place / "app/static").symlink_to("/etc"), "link"),
        (lambda place: (place / ".wheels-ops").write_text(""), "is no directory"),
    ],
)
def test_what_is_not_understood_is_refused_whole(
    place: Path, break_it: t.Callable[[Path], t.Any], message: str
) -> None:
    break_it(place)
    before = tree(place)
    with pytest.raises(OpsError, match=message):
        build_patch.install(str(place))
    assert {name: entry for name, entry in tree(place).items() if not name.startswith(".wheels-ops/")} == before


def test_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    for call in (build_patch.install, build_patch.remove):
        with pytest.raises(OpsError, match=f"The directory {tmp_path}/none does not exist"):
            call(str(tmp_path / "none"))
