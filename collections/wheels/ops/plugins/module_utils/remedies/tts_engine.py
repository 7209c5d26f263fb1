# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The engines of the speech chain on a host: there, installed where missing, and proved by audio that decodes."""

from __future__ import annotations

import contextlib
import functools
import glob
import json
import os
import re
import shutil
import signal
import subprocess
import time
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

from ..core.options import choice, choices, in_range, matching, url
from ..core.results import OpsError, Result
from ..host import files, run_as, subprocesses
from ..host.audio import describe

#: The chain by ``TTS_PRIMARY_ENGINE``; text only is always its end (``app/services/tts/tts_service.py``).
CHAINS: t.Dict[str, t.Tuple[str, ...]] = {
    "edge": ("edge", "coqui", "espeak", "pyttsx3"),
    "coqui": ("coqui", "edge", "espeak", "pyttsx3"),
    "fallback": ("espeak", "pyttsx3"),
}
_VOICE = re.compile(r"[a-z]{2,3}-[A-Z]{2}(-[A-Za-z]+)?-[A-Za-z]+Neural")
ENGINES: t.Tuple[str, ...] = CHAINS["edge"]
#: What ``apt`` and ``pip`` call them, and the oldest version that works: Edge's service refuses edge-tts before 7.2.3
#: with 403.
PACKAGES: t.Dict[str, t.Tuple[str, str, str]] = {
    "espeak": ("apt", "espeak-ng", ""),
    "edge": ("pip", "edge-tts", "7.2.3"),
    "pyttsx3": ("pip", "pyttsx3", ""),
    "coqui": ("pip", "coqui-tts", ""),
}
#: The module of each engine in the backend's environment, and the packages that bring it.
_IMPORTS: t.Dict[str, t.Tuple[str, t.Tuple[str, ...]]] = {
    "edge": ("edge_tts", ("edge-tts",)),
    "pyttsx3": ("pyttsx3", ("pyttsx3",)),
    "coqui": ("TTS", ("coqui-tts", "TTS")),
}
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_SURVEY = """
import importlib.metadata as m, importlib.util as u, json, sys
found = {}
for engine, (module, packages) in json.loads(sys.argv[1]).items():
    version = ""
    for package in packages:
        try:
            version = version or m.version(package)
        except m.PackageNotFoundError:
            pass
    found[engine] = version or "?" if u.find_spec(module) else ""
json.dump(found, sys.stdout)
"""
_EDGE = """
import asyncio, os, sys, edge_tts
async def main():
    spoken = edge_tts.Communicate(sys.stdin.read(), sys.argv[1], proxy=os.environ.get("TTS_EDGE_PROXY") or None)
    async for item in spoken.stream():
        if item["type"] == "audio":
            sys.stdout.buffer.write(item["data"])
asyncio.run(main())
"""
_PYTTSX3 = """
import os, sys, pyttsx3
engine = pyttsx3.init()
engine.save_to_file(sys.stdin.read(), os.path.join(os.environ["TMPDIR"], "speech.wav"))
engine.runAndWait()
"""


@dataclass(frozen=True)
class Options:
    """``engines`` must be there; ``backend_python`` is the interpreter of the backend's virtual environment, empty for
    none.

    ``proxy`` is for Edge. ``install`` False only looks. ``allow_text_only`` makes a host without any audio a success.
    ``backend_user``: as whom the backend's interpreter runs; its owner, if empty. In check mode it runs only with
    ``verify_in_check_mode``.
    """

    engines: t.Tuple[str, ...] = ("edge", "espeak")
    primary: str = "edge"
    backend_python: str = ""
    proxy: str = ""
    voice: str = "en-US-AriaNeural"
    text: str = "The speech engines work."
    install: bool = True
    allow_text_only: bool = False
    backend_user: str = ""
    verify_in_check_mode: bool = False
    timeout: float = 10.0
    install_timeout: float = 600.0


@dataclass
class Engine:
    """What is known of one engine: ``speaks`` is None where it was not tried, ``unknown`` says that it was not looked
    for.
    """

    name: str
    present: bool = False
    version: str = ""
    program: str = ""
    speaks: t.Optional[bool] = None
    why: str = ""
    audio: t.Dict[str, t.Any] = field(default_factory=dict)
    unknown: bool = False

    def as_dict(self) -> t.Dict[str, t.Any]:
        return {
            "present": self.present,
            "version": self.version,
            "program": self.program,
            "speaks": self.speaks,
            "why": self.why,
            "audio": self.audio,
        }


def validate(options: Options) -> None:
    """Refuses what makes no sense, before anything is touched."""
    choices("engines", options.engines, tuple(ENGINES))
    choice("primary", options.primary, tuple(CHAINS))
    if not options.text.strip() or len(options.text) > 500 or "\0" in options.text:
        raise OpsError(
            f"text must be 1 to 500 characters without a NUL, got {len(options.text)}.", hint="Give a short sentence."
        )
    matching("voice", options.voice, _VOICE, "a voice of Edge", hint="For example en-US-AriaNeural.")
    in_range("timeout", options.timeout, 1, 120, unit="seconds")
    in_range("install_timeout", options.install_timeout, 1, 7200, unit="seconds")
    if options.proxy:
        url("proxy", options.proxy, hint="For example http://proxy:3128.")
    python = options.backend_python
    if python and not (os.path.isabs(python) and os.access(python, os.X_OK) and os.path.isfile(python)):
        raise OpsError(
            f"{python} is no program.",
            hint="Give the absolute path of the Python in the backend's virtual environment.",
        )
    needing = sorted(name for name in options.engines if PACKAGES[name][0] == "pip")
    if needing and not python:
        raise OpsError(
            f"{', '.join(needing)} live in the backend's environment, which is not known.",
            hint="Give backend_python, or other engines.",
        )


def run(options: Options, *, check_mode: bool = False) -> Result:
    """Looks, installs what is missing, lets every engine of the chain speak, and names the one that would speak now."""
    validate(options)
    _identity.cache_clear()
    execute = options.verify_in_check_mode or not check_mode
    before = survey(options, execute=execute)
    missing = [name for name in options.engines if not before[name].unknown and reason_to_install(before[name])]
    if missing and not options.install and not check_mode:
        raise OpsError(
            f"Missing: {', '.join(missing)}.",
            hint="Run with install: true, or install " + ", ".join(PACKAGES[name][1] for name in missing) + ".",
        )
    actions: t.List[t.Dict[str, t.Any]] = []
    for name in missing:
        kind, package, oldest = PACKAGES[name]
        start = time.monotonic()
        if not check_mode:
            install(name, options)
        actions.append(
            {
                "action": "install",
                "target": f"{package}>={oldest}" if oldest else package,
                "changed": True,
                "engine": name,
                "via": kind,
                "why": reason_to_install(before[name]),
                "duration_ms": round((time.monotonic() - start) * 1000, 1),
            }
        )
    left_out: t.List[str] = []
    after = (
        survey(options)
        if missing and not check_mode
        else {name: Engine(**vars(engine)) for name, engine in before.items()}
    )
    for name in CHAINS[options.primary]:
        engine = after[name]
        if check_mode and name in missing:
            engine.present, engine.why = True, "it would be installed; audio cannot be proved before"
            continue
        if not execute and engine.program and _is_of_backend(engine, options):
            engine.why = engine.why or "not verified: in check mode nothing of the backend is executed"
            left_out.append(name)
            continue
        still = reason_to_install(engine) if name in options.engines else ""
        if name in missing and still:
            raise OpsError(
                f"{PACKAGES[name][1]} was installed and {name} is still not usable: {still}.",
                hint="See what the installation wrote.",
                last_state=engine.as_dict(),
            )
        prove(engine, options)
        if engine.speaks is not None:
            actions.append(
                {
                    "action": "speak",
                    "target": name,
                    "changed": False,
                    "speaks": engine.speaks,
                    "why": engine.why,
                    **engine.audio,
                }
            )
    engine_after, reasons = would_speak(after, options.primary, predicted=[*missing, *left_out] if check_mode else ())
    if engine_after == "text_only" and not options.allow_text_only:
        raise OpsError(
            "No speech engine makes audio.",
            hint="; ".join(f"{name}: {why}" for name, why in reasons.items()) or "Install espeak-ng.",
            before=_facts(before),
            after=_facts(after),
            actions=actions,
        )
    return Result(
        changed=bool(missing),
        before=_facts(before),
        after={**_facts(after), "engine": engine_after},
        actions=actions,
        msg=_sentence(engine_after, reasons, missing, check_mode)
        + (f" Not verified in check mode: {', '.join(left_out)}." if left_out else ""),
        diff=[
            {
                "before": _text(before),
                "after": _text(after),
                "before_header": "speech engines",
                "after_header": "speech engines",
            }
        ],
        extra={
            "engine": engine_after,
            "reasons": reasons,
            "chain": [*CHAINS[options.primary], "text_only"],
            "left_out": left_out,
        },
    )


def would_speak(
    engines: t.Mapping[str, Engine], primary: str, *, predicted: t.Collection[str] = ()
) -> t.Tuple[str, t.Dict[str, str]]:
    """The first engine of the chain that made audio (or, in check mode, would be installed), and why the better ones
    did not.
    """
    reasons: t.Dict[str, str] = {}
    for name in CHAINS[primary]:
        engine = engines[name]
        # That Edge can be installed does not mean that its service can be reached; a local engine speaks once it is
        # there.
        if engine.speaks or (name in predicted and name not in ("edge", "coqui") and not engine.unknown):
            return name, reasons
        reasons[name] = engine.why or "it made no audio"
    return "text_only", reasons


def reason_to_install(engine: Engine) -> str:
    """Why an engine must be installed or brought up to date; empty if it need not."""
    if not engine.present:
        return engine.why or "it is not installed"
    oldest = PACKAGES[engine.name][2]
    if oldest and engine.version not in ("", "?") and _numbers(engine.version) < _numbers(oldest):
        return f"version {engine.version} is older than {oldest}"
    return ""


def _numbers(version: str) -> t.Tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def survey(options: Options, *, execute: bool = True) -> t.Dict[str, Engine]:
    """What is there; starts nothing but ``--version`` and the backend's interpreter, the latter only where to
    ``execute``.
    """
    engines = {name: Engine(name) for name in ENGINES}
    path = f"{os.environ.get('PATH', '')}:{_PATH}"
    espeak = engines["espeak"]
    espeak.program = shutil.which("espeak-ng", path=path) or shutil.which("espeak", path=path) or ""
    espeak.present = bool(espeak.program)
    if espeak.present and (execute or not _is_of_backend(espeak, options)):
        with contextlib.suppress(OpsError):
            version = re.search(
                r"\d+\.\d+[\d.]*", _run([espeak.program, "--version"], timeout=options.timeout).decode(errors="replace")
            )
            espeak.version = version[0] if version else "?"
    elif not espeak.present:
        espeak.why = "neither espeak-ng nor espeak is installed"
    if not options.backend_python:
        for name in _IMPORTS:
            engines[name].why = "backend_python is not given"
        return engines
    versions = _versions(options) if execute else _versions_without_running(options)
    for name in _IMPORTS:
        engines[name].program = options.backend_python
        if versions is None:
            engines[name].unknown = True
            engines[name].why = (
                "not looked for: in check mode nothing of the backend is executed, and its Python belongs to no virtual"
                " environment"
            )
            continue
        engines[name].version, engines[name].present = versions[name], bool(versions[name])
        engines[name].why = "" if versions[name] else f"the package {PACKAGES[name][1]} is not installed"
    return engines


def _versions(options: Options) -> t.Dict[str, str]:
    raw = _run(
        [options.backend_python, "-c", _SURVEY, json.dumps(_IMPORTS)],
        timeout=max(options.timeout, 30),
        user=options.backend_user,
    )
    try:
        versions = json.loads(raw)
        return {name: str(versions[name]) for name in _IMPORTS}
    except (ValueError, KeyError, TypeError) as error:
        raise OpsError(
            f"{options.backend_python} does not answer as a Python does.", hint="Give the backend's interpreter."
        ) from error


def _versions_without_running(options: Options) -> t.Optional[t.Dict[str, str]]:
    """What the files of the virtual environment say.

    Without one the interpreter is a program of this system: it is asked where it is ours, else None.
    """
    who = _identity(options.backend_python, options.backend_user)
    packages = run_as.packages_of(who, options.backend_python)
    if not packages["environment"]:
        return _versions(options) if who.uid == run_as.effective_uid() else None
    versions = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in packages["versions"].items()}
    return {
        engine: (
            next((versions[name.lower()] for name in names if name.lower() in versions), "?")
            if module in packages["modules"]
            else ""
        )
        for engine, (module, names) in _IMPORTS.items()
    }


def _is_of_backend(engine: Engine, options: Options) -> bool:
    """Whether an engine's code is the backend's, or of a user that is neither root nor we."""
    return engine.program == options.backend_python or run_as.owner_of([engine.program]).uid != run_as.effective_uid()


def _environment_of(python: str) -> t.List[str]:
    """The directories that say whose code an interpreter runs."""
    prefix = os.path.dirname(os.path.dirname(python))
    if not os.path.isfile(os.path.join(prefix, "pyvenv.cfg")):
        return []
    return [prefix, *glob.glob(os.path.join(glob.escape(prefix), "lib*", "python*", "site-packages"))]


@functools.lru_cache(maxsize=16)
def _identity(program: str, user: str = "") -> run_as.Identity:
    """As whom a program is run; looked at once a run. Raises ``OpsError`` where a third user may write it."""
    who = run_as.owner_of([*_environment_of(program), os.path.dirname(program), program], user=user)
    run_as.require_trusted(who, interpreters=[program])
    return who


def install(name: str, options: Options) -> None:
    """Installs one engine. Raises ``OpsError`` that names the package and the right that is missing."""
    kind, package, oldest = PACKAGES[name]
    if kind == "apt":
        _apt(package, options.install_timeout)
    else:
        _pip(options.backend_python, f"{package}>={oldest}" if oldest else package, options.install_timeout)


def _apt(package: str, timeout: float) -> None:
    apt = shutil.which("apt-get", path=f"{os.environ.get('PATH', '')}:{_PATH}")
    if not apt:
        raise OpsError(
            f"This host has no apt-get to install {package} with.",
            hint=f"Install {package} by the means of this system.",
        )
    if os.geteuid() != 0:
        raise OpsError(
            f"Only root may install {package}.",
            hint=f"Run this task with become: true, or run apt-get install {package} beforehand.",
        )
    if run_as.owner_of([apt]).uid != run_as.effective_uid():
        raise OpsError(f"{apt} is not root's.", hint="Take its directory out of the PATH of this task.")
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    words = [apt, "-o", "DPkg::Lock::Timeout=120", "-y", "--no-install-recommends"]
    try:
        _run_as_we_are([*words, "install", package], timeout=timeout, environment=environment)
    except OpsError as error:
        if not re.search(
            r"Unable to locate|no installation candidate|404  Not Found", str(error.details.get("stderr", ""))
        ):
            raise
        _run_as_we_are([*words, "update"], timeout=timeout, environment=environment)
        _run_as_we_are([*words, "install", package], timeout=timeout, environment=environment)


def _pip(python: str, requirement: str, timeout: float) -> None:
    """From wheels only: no code of a package runs while it is installed.

    Runs as the owner of the environment, whose files they become.
    """
    environment = run_as.installer_environment()
    try:
        _run([python, "-m", "pip", "--version"], timeout=60)
        words = [
            python,
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--no-input",
            "--only-binary=:all:",
            requirement,
        ]
    except OpsError:
        uv = shutil.which("uv", path=f"{os.path.dirname(python)}:{os.environ.get('PATH', '')}:{_PATH}")
        if not uv:
            raise OpsError(
                f"{python} has no pip to install {requirement} with.",
                hint=f"Run {python} -m ensurepip, or install {requirement} there.",
            ) from None
        who = _identity(python)
        run_as.require_trusted(who, interpreters=[uv])
        _run(
            [uv, "pip", "install", "--python", python, "--only-binary", ":all:", requirement],
            timeout=timeout,
            environment=environment,
            who=who,
        )
        return
    _run(words, timeout=timeout, environment=environment)


def prove(engine: Engine, options: Options) -> None:
    """Lets an engine speak and looks into the audio: sets ``speaks``, ``why`` and ``audio``. Raises nothing."""
    if not engine.present:
        return
    if engine.name == "coqui":
        # A model is hundreds of megabytes, chosen by the backend: loading one here would prove another installation.
        engine.speaks, engine.why = False, "Coqui is installed; only the backend, which has the model, can prove it"
        return
    start = time.monotonic()
    try:
        data = _speak(engine, options)
        engine.audio = {
            **describe(data),
            "bytes": len(data),
            "first_to_last_ms": round((time.monotonic() - start) * 1000, 1),
        }
        engine.speaks = not engine.audio["silent"]
        engine.why = "" if engine.speaks else "the audio is silence"
    except OpsError as error:
        engine.speaks, engine.why = False, _why(error)


def _speak(engine: Engine, options: Options) -> bytes:
    text = options.text.encode()
    if engine.name == "espeak":
        return _true_sizes(
            _run([engine.program, "--stdin", "--stdout", "-b", "1"], stdin=text, timeout=options.timeout)
        )
    if engine.name == "edge":
        # A proxy's password does not belong into an argument list, which everybody on the host can read.
        proxy = {"TTS_EDGE_PROXY": options.proxy}
        return _run(
            [engine.program, "-c", _EDGE, options.voice],
            stdin=text,
            timeout=options.timeout,
            environment=proxy,
            user=options.backend_user,
        )
    return _run(
        [engine.program, "-c", _PYTTSX3],
        stdin=text,
        timeout=options.timeout,
        user=options.backend_user,
        output="speech.wav",
    )


def _true_sizes(data: bytes) -> bytes:
    """espeak writes to a pipe before it knows how much there will be, and puts 0x7ffff000 into the header."""
    place = data.find(b"data", 12)
    if data[:4] != b"RIFF" or place < 0:
        return data
    body = len(data) - place - 8
    return (
        data[:4]
        + (place + body).to_bytes(4, "little")
        + data[8 : place + 4]
        + body.to_bytes(4, "little")
        + data[place + 8 :]
    )


def _why(error: OpsError) -> str:
    """The last line that the program wrote, which names the error, or ours."""
    lines = [line.strip() for line in str(error.details.get("stderr", "")).splitlines() if line.strip()]
    return re.sub(r" ssl:<[^>]*>", "", lines[-1] if lines else error.message)[:300]


def _run(
    words: t.Sequence[str],
    *,
    timeout: float,
    stdin: bytes = b"",
    environment: t.Optional[t.Mapping[str, str]] = None,
    user: str = "",
    who: t.Optional[run_as.Identity] = None,
    output: str = "",
) -> bytes:
    """Runs a program in ``/`` (nothing is imported from where we happen to be) as the user whose code it is, and gives
    what it printed.

    ``output``: the file in its TMPDIR that is given instead.
    """
    who = who or _identity(words[0], user)
    with run_as.private_directory(who) as place:
        complete = {"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "utf-8", **(environment or {})}
        completed = run_as.run(words, who, place, timeout=timeout, stdin=stdin, environment=complete)
        _require_success(words, completed.returncode, completed.stderr)
        if not output:
            return completed.stdout
        real = files.real_directory(place)
        content = files.read_regular(Path(real, "tmp", output), real)
    if content is None:
        raise OpsError("no audio was written")
    return content[0]


def _run_as_we_are(words: t.Sequence[str], *, timeout: float, environment: t.Mapping[str, str]) -> None:
    """Runs a program of the system with our rights and our environment; kills its group on time-out."""
    try:
        process = subprocesses.start(words, cwd="/", environment={**os.environ, "LC_ALL": "C.UTF-8", **environment})
    except OSError as error:
        raise OpsError(f"{words[0]} cannot be started: {error.strerror}.") from error
    try:
        _output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        raise OpsError(f"{os.path.basename(words[0])} was not done within {timeout:g} s.", hint="") from None
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    _require_success(words, process.returncode, errors)


def _require_success(words: t.Sequence[str], returncode: int, errors: bytes) -> None:
    if returncode:
        name = " ".join(os.path.basename(word) if "/" in word else word.split("\n")[0] for word in words[:4])
        raise OpsError(f"{name} ended with {returncode}.", stderr=errors.decode(errors="replace")[-2000:])


def _facts(engines: t.Mapping[str, Engine]) -> t.Dict[str, t.Any]:
    return {"engines": {name: engine.as_dict() for name, engine in engines.items()}}


def _text(engines: t.Mapping[str, Engine]) -> str:
    return "".join(
        f"{name}: {('version ' + engine.version).strip() if engine.present else 'missing'}\n"
        for name, engine in engines.items()
    )


def _sentence(engine: str, reasons: t.Mapping[str, str], missing: t.Sequence[str], check_mode: bool) -> str:
    verb = "would be installed" if check_mode else "installed"
    parts = [f"{', '.join(missing)} {verb}."] if missing else []
    parts.append(
        "Nothing can speak, the backend shows text."
        if engine == "text_only"
        else f"{engine} {'would speak' if check_mode else 'speaks'}."
    )
    if reasons:
        parts.append("Not before it: " + "; ".join(f"{name} ({why})" for name, why in reasons.items()) + ".")
    return " ".join(parts)
