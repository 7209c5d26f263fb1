# SPDX-License-Identifier: GPL-3.0-or-later
"""tts_engine: what is there, what is installed, and who speaks.

Programs are real; apt and pip are played where they would change this machine.
"""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from tests.support.backend_env import BACKEND_PYTHON
from tests.support.tts_backend import FakeEdge
from wheels_ops.core.results import OpsError
from wheels_ops.remedies import tts_engine
from wheels_ops.remedies.tts_engine import Options, run

PYTHON = str(BACKEND_PYTHON)


def test_the_first_engine_that_makes_audio_and_why_the_better_ones_do_not() -> None:
    result = run(Options(backend_python=PYTHON, proxy="http://127.0.0.1:9"))
    assert not result.changed and result.extra["engine"] == "espeak"
    assert (
        set(result.extra["reasons"]) == {"edge", "coqui"}
        and "coqui-tts" in result.extra["reasons"]["coqui"]
        and "127.0.0.1:9" in result.extra["reasons"]["edge"]
    )
    assert (
        result.after["engines"]["espeak"]["audio"]["format"] == "wav"
        and result.after["engines"]["espeak"]["audio"]["duration_ms"] > 500
    )
    assert result.after["engines"]["pyttsx3"]["speaks"] is True
    assert [action["target"] for action in result.actions] == ["edge", "espeak", "pyttsx3"]


def test_edge_is_proved_through_the_fake_edge_endpoint(edge: FakeEdge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(edge.trust))
    result = run(Options(backend_python=PYTHON, proxy=edge.proxy))
    assert result.extra["engine"] == "edge" and result.extra["reasons"] == {}
    assert result.after["engines"]["edge"]["audio"]["format"] == "mp3"
    assert edge.seen("ssml")[0]["text"] == "The speech engines work."
    edge.mode("no_audio")
    silent = run(Options(backend_python=PYTHON, proxy=edge.proxy))
    assert silent.extra["engine"] == "espeak" and "NoAudioReceived" in silent.extra["reasons"]["edge"]
    edge.mode("silent")
    assert (
        "not done within 2 s"
        in run(Options(backend_python=PYTHON, proxy=edge.proxy, timeout=2)).extra["reasons"]["edge"]
    )


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host without espeak-ng: a PATH of its own, and an apt-get that puts it there and records how it was called."""
    programs = tmp_path / "bin"
    programs.mkdir()
    script = programs / "apt-get"
    script.write_text(
        f'#!/bin/sh\necho "$DEBIAN_FRONTEND $@" >> {tmp_path}/apt.log\ncase " $* " in *" install "*) [ -e'
        f' {tmp_path}/lists ] || {{ echo "E: Unable to locate package espeak-ng" >&2; exit 100; }}\n/bin/ln -s'
        f' /usr/bin/espeak-ng {programs}/espeak-ng ;; *" update "*) : > {tmp_path}/lists ;; esac\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(tts_engine, "_PATH", str(programs))
    return tmp_path


def test_check_mode_then_install_then_again(apt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    options = Options(engines=("espeak",), primary="fallback")
    predicted = run(options, check_mode=True)
    assert predicted.changed and predicted.extra["engine"] == "espeak" and not (apt / "apt.log").exists()
    assert predicted.actions == [{**predicted.actions[0], "action": "install", "target": "espeak-ng", "changed": True}]
    real = run(options)
    assert real.changed and real.extra["engine"] == "espeak" and real.after["engines"]["espeak"]["speaks"] is True
    assert set(real.as_dict()) == set(predicted.as_dict())
    assert [line.split()[0] for line in (apt / "apt.log").read_text().splitlines()] == ["noninteractive"] * 3, (
        "install, update, install"
    )
    again = run(options)
    assert not again.changed and again.extra["engine"] == "espeak"
    assert "espeak: missing" in real.diff[0]["before"] and "espeak: version 1." in real.diff[0]["after"]


def test_without_the_right_the_package_and_the_right_are_named(apt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(OpsError, match="espeak-ng") as caught:
        run(Options(engines=("espeak",), primary="fallback"))
    assert "become" in caught.value.hint and not (apt / "apt.log").exists()
    with pytest.raises(OpsError, match="Missing: espeak"):
        run(Options(engines=("espeak",), primary="fallback", install=False))


@pytest.mark.parametrize(
    "script",
    ["cat >/dev/null", "cat >/dev/null; printf 'RIFF$...WAVEfmt nonsense'", "exit 1", "cat >/dev/null; sleep 987"],
)
def test_an_engine_that_makes_no_audio_is_never_called_working(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    program = tmp_path / "espeak-ng"
    program.write_text(f"#!/bin/sh\ncase $1 in --version) echo 1.51; exit;; esac\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    options = Options(engines=("espeak",), primary="fallback", timeout=1)
    with pytest.raises(OpsError, match="No speech engine makes audio") as caught:
        run(options)
    assert "espeak:" in caught.value.hint and caught.value.details["after"]["engines"]["espeak"]["speaks"] is False
    assert run(Options(**{**vars(options), "allow_text_only": True})).extra["engine"] == "text_only"


def test_an_edge_library_that_the_service_refuses_is_replaced(tmp_path: Path) -> None:
    """A virtual environment of its own with edge-tts 6.1.9, the version the incident's backend pinned, in place of
    which pip is asked for a newer one.
    """
    site = tmp_path / "site"
    (site / "edge_tts").mkdir(parents=True)
    (site / "edge_tts" / "__init__.py").write_text("")
    (site / "edge_tts-6.1.9.dist-info").mkdir()
    (site / "edge_tts-6.1.9.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: edge-tts\nVersion: 6.1.9\n"
    )
    python = tmp_path / "python"
    old, new = site / "edge_tts-6.1.9.dist-info", site / "edge_tts-7.2.3.dist-info"
    python.write_text(
        "#!/bin/sh\n"
        f'if [ "$1 $2" = "-m pip" ]; then\n  echo "$@" >> {tmp_path}/pip.log\n'
        f'  case "$*" in *install*) mv {old} {new}; sed -i s/6.1.9/7.2.3/ {new}/METADATA;; esac\n  exit 0\nfi\n'
        f'PYTHONPATH={site} exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    options = Options(engines=("edge", "espeak"), backend_python=str(python))
    predicted = run(options, check_mode=True)
    assert (
        predicted.changed
        and predicted.actions[0]["target"] == "edge-tts>=7.2.3"
        and "older" in predicted.actions[0]["why"]
    )
    assert predicted.extra["engine"] == "espeak", "that it can be installed does not mean that its service is reached"
    result = run(options)
    assert result.changed and result.after["engines"]["edge"]["version"] == "7.2.3"
    assert "--only-binary=:all:" in (tmp_path / "pip.log").read_text()
    assert not run(options).changed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"engines": ("festival",)}, "engines must contain only .*, got festival"),
        ({"engines": ()}, "engines must not be empty"),
        ({"primary": "openai"}, "primary must be one of .*, got .openai"),
        ({"engines": ("edge",)}, "backend_python"),
        ({"engines": ("espeak",), "backend_python": "python3"}, "is no program"),
        ({"engines": ("espeak",), "backend_python": "/etc/passwd"}, "is no program"),
        ({"engines": ("espeak",), "text": "  "}, "text must be 1 to 500 characters"),
        ({"engines": ("espeak",), "text": "x" * 501}, "text must be 1 to 500 characters"),
        ({"engines": ("espeak",), "voice": "'; drop"}, "voice must be a voice of Edge"),
        ({"engines": ("espeak",), "timeout": 0}, "timeout must be between 1 and 120 seconds"),
        ({"engines": ("espeak",), "proxy": "socks://x"}, "proxy must be an http.s. URL"),
        ({"engines": ("espeak",), "proxy": "http://x:99999"}, "proxy must be an http.s. URL"),
    ],
)
def test_nonsense_is_refused_before_anything_is_touched(options: t.Dict[str, t.Any], words: str) -> None:
    with pytest.raises(OpsError, match=words):
        run(Options(**options))


def test_module_runs_under_ansible_and_keeps_the_proxys_password(tmp_path: Path) -> None:
    ansible = Path(sys.executable).with_name("ansible")
    if not ansible.exists() or not shutil.which("espeak-ng"):
        pytest.skip("needs ansible and espeak-ng")
    repository = Path(__file__).resolve().parents[2]
    words = [
        str(ansible),
        "localhost",
        "-c",
        "local",
        "-m",
        "wheels.ops.tts_engine",
        "-e",
        f"ansible_python_interpreter={sys.executable}",
        "-vvv",
        "-a",
        f"backend_python={PYTHON} proxy=http://user:topsecret@127.0.0.1:9",
    ]
    variables = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "ANSIBLE_COLLECTIONS_PATH": str(repository / "collections"),
    }
    done = subprocess.run(words, capture_output=True, text=True, env=variables, check=False)
    assert done.returncode == 0 and "espeak speaks." in done.stdout, done.stdout + done.stderr
    assert "topsecret" not in done.stdout.replace(" ".join(words), "")
