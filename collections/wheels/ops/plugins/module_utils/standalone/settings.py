# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the programs know of their host: a file that the role ``monitoring`` writes, the environment, and what can be
found without either.

The file is JSON and holds secrets. Keys: ``state_dir``, ``deadline``, ``checks`` (the options of ``suite.Options``) and
``recovery`` (the fields of ``Recovery``). ``REDIS_URL``, ``DATABASE_URL`` and ``BASE_URL`` of the environment take the
place of what the file says. ``alerts`` are the receivers of ``report/alerts.py``, ``runbook_url`` is the template of
``report/runbooks.py``.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import typing as t
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from urllib.parse import urlsplit

from ..checks import suite
from ..core.options import in_range, known_keys
from ..core.redaction import redact_value, secrets_of
from ..core.results import OpsError
from ..health.thresholds import parse
from ..host import environment_files
from ..report import alerts, runbooks
from ..report.alerts import Receiver
from ..services.manager import open_manager
from ..state import restarts

CONFIG = "/etc/wheels-ops/monitor.json"
#: The whole run of the monitor, in seconds.
DEADLINE = 20.0
#: What is kept of the deadline for reading settings, the report and the history.
MARGIN = 2.0
#: Defaults of the role ``monitoring``; a test compares both.
REPORTED: t.Dict[str, t.Any] = {
    "cors_origins": ["https://wheelsandwins.com", "https://www.wheelsandwins.com"],
    "websocket_path": suite.WEBSOCKET_PATHS[0],
    "logs": ["/var/log/*.log"],
}
BASE_URL = "http://127.0.0.1:8000"
REDIS_URL = "redis://127.0.0.1:6379/0"
#: As much of the backend's ``.env`` is read.
DOTENV_BYTES = 262_144
#: Variables of the environment, and of the backend's ``.env``, by the option that each sets.
VARIABLES: t.Dict[str, str] = {"BASE_URL": "base_url", "REDIS_URL": "redis_url", "DATABASE_URL": "database_dsn"}


@dataclass(frozen=True)
class Recovery:
    """How the automated recovery behaves; the names are those of the roles ``recovery``, ``services`` and ``database``
    without the role's.

    ``confirm_after``, ``cooldown``, ``max_cooldown``, ``budget``, ``max_failures`` and ``max_restarts`` are those of
    ``plan.Policy``, which ``policy`` takes the place of where it says something else.
    ``repair_database``, ``throttle``, ``relieve_cpu`` and ``install_speech`` permit a remedy. ``throttle_seconds`` and
    ``relief_seconds``: when what was slowed down gets its full rate again.
    """

    token_file: str = "/etc/wheels-ops/ops-token"
    log_directories: t.Sequence[str] = ()
    log_max_size: str = "50MB"
    log_keep: int = 7
    log_allow_loss: bool = False
    log_reopen: t.Sequence[str] = ()
    disk_sources: t.Sequence[t.Mapping[str, t.Any]] = ()
    disk_targets: t.Sequence[t.Mapping[str, t.Any]] = ()
    disk_protect: t.Sequence[str] = ()
    cache_prefixes: t.Sequence[str] = ()
    memory_target: float = 0.0
    memory_protect: t.Sequence[str] = ()
    allow_restart: bool = True
    min_healthy_time: float = 3.0
    healthy_deadline: float = 60.0
    wait_timeout: float = 120.0
    max_restarts: int = 3
    allow_task_loss: bool = False
    throttle: bool = True
    throttle_level: int = 2
    throttle_seconds: int = 900
    relieve_cpu: bool = True
    relief_seconds: float = 3600.0
    relief_min_percent: float = 25.0
    relief_protect: t.Sequence[str] = ()
    install_speech: bool = False
    repair_database: bool = False
    database_scripts: t.Sequence[str] = ()
    rls_allow_unbounded: bool = False
    rls_accept_captured_columns: bool = False
    confirm_after: float = 5.0
    cooldown: float = 600.0
    max_cooldown: float = 14_400.0
    budget: int = 6
    max_failures: int = 2
    policy: t.Mapping[str, t.Any] = field(default_factory=dict)
    timeout: float = 60.0


@dataclass(frozen=True)
class Settings:
    """``checks`` without the thresholds parsed away; ``source`` says where it came from, ``notes`` what a person should
    know of it.
    """

    checks: suite.Options = field(default_factory=suite.Options)
    recovery: Recovery = field(default_factory=Recovery)
    alerts: t.Tuple[Receiver, ...] = ()
    runbook_url: str = ""
    state_dir: Path = Path(restarts.DEFAULT_STATE_DIR)
    deadline: float = DEADLINE
    source: str = "discovery"
    notes: t.Tuple[str, ...] = ()
    #: From another machine, nothing is kept of a run.
    view: suite.View = field(default_factory=suite.View)

    def secrets(self) -> t.List[str]:
        """Every secret in it, the longest first: what no output may show."""
        checks = {each.name: getattr(self.checks, each.name) for each in fields(self.checks)}
        return secrets_of({**checks, "alerts": [asdict(receiver) for receiver in self.alerts], **asdict(self.view)})

    def scrubbed(self, value: t.Any) -> t.Any:
        """A copy of any output without a secret in any of its texts."""
        return redact_value(value, self.secrets())


def load(config: str = "", environment: t.Optional[t.Mapping[str, str]] = None) -> Settings:
    """The settings of this host.

    Raises ``OpsError`` for a file that cannot be read, that is not ours, or that says what nobody knows.
    """
    env = os.environ if environment is None else environment
    path = config or env.get("WHEELS_OPS_CONFIG", "") or _noted()
    content: t.Dict[str, t.Any] = {}
    notes: t.List[str] = []
    source = "discovery"
    if path:
        source = path
        content = _read(Path(source), notes)
    checks = _section(content, "checks", suite.Options())
    overrides = {option: env[variable] for variable, option in VARIABLES.items() if env.get(variable)}
    if source == "discovery":
        _discover(checks, overrides, notes)
    checks.update(overrides)
    deadline = _typed("deadline", content.get("deadline", DEADLINE), DEADLINE)
    in_range("deadline", deadline, MARGIN + 1, 3600, unit="seconds")
    state = env.get("WHEELS_OPS_STATE_DIR") or _typed("state_dir", content.get("state_dir", ""), "") or _state_dir(env)
    checks["thresholds"] = parse(checks.get("thresholds") or {})
    runbook_url = str(_typed("runbook_url", content.get("runbook_url", ""), ""))
    runbooks.require(runbook_url)
    options = suite.Options(**environment_files.resolve(checks))
    options = _within(
        replace(options, timeout=min(options.timeout, deadline - MARGIN) if "timeout" in checks else deadline - MARGIN),
        notes,
    )
    return Settings(
        checks=options,
        recovery=Recovery(**_section(content, "recovery", Recovery())),
        alerts=alerts.parse(_typed("alerts", content.get("alerts", []), ())),
        runbook_url=runbook_url,
        state_dir=restarts.state_dir(str(state)),
        deadline=deadline,
        source=source,
        notes=tuple(notes),
    )


def _noted() -> str:
    """The configuration that the role noted beside an installed library, else the usual one if it is there; empty for
    none.
    """
    with contextlib.suppress(OSError):
        return Path(__file__).resolve().parents[2].joinpath("config").read_text(encoding="utf-8").strip()
    return CONFIG if os.path.lexists(CONFIG) else ""


def _read(path: Path, notes: t.List[str]) -> t.Dict[str, t.Any]:
    try:
        # Not to wait for the other end of a named pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, encoding="utf-8") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise OpsError(
                    f"{path} is no regular file.", hint="Name the configuration that the role monitoring writes."
                )
            if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
                # What it names is done with the rights of this user.
                raise OpsError(
                    f"{path} can be changed by others.",
                    hint=f"It has to belong to root or to you, and be writable by nobody else: chmod 600 {path}",
                )
            if status.st_mode & 0o044:
                notes.append(f"{path} can be read by others and may hold passwords: chmod 600 {path}")
            content = json.loads(file.read())
    except OSError as error:
        raise OpsError(
            f"Cannot read {path}: {error.strerror}.",
            hint="Run as the user that it belongs to (root), or name another file with --config.",
        ) from None
    except ValueError as error:
        # The text of the error names a position, never the content.
        raise OpsError(f"{path} is no JSON: {error}.", hint="Let the role monitoring write it again.") from None
    if not isinstance(content, dict):
        raise OpsError(f"{path} holds no object.", hint='It looks like {"checks": {...}, "recovery": {...}}.')
    known_keys(str(path), content, ("checks", "recovery", "alerts", "runbook_url", "state_dir", "deadline"))
    return content


def _section(content: t.Mapping[str, t.Any], name: str, default: t.Any) -> t.Dict[str, t.Any]:
    section = content.get(name, {})
    defaults = {each.name: getattr(default, each.name) for each in fields(default)}
    if not isinstance(section, dict):
        raise OpsError(f"{name} in the configuration must be an object.", hint=f"Its keys are {', '.join(defaults)}.")
    known_keys(f"{name} in the configuration", section, defaults)
    return {key: _typed(f"{name}.{key}", value, defaults[key]) for key, value in section.items()}


def _typed(name: str, value: t.Any, default: t.Any) -> t.Any:
    """A value of the file that is of its default's kind. Its content may be a secret and is not repeated."""
    kinds: t.Dict[type, t.Tuple[str, t.Callable[[], bool]]] = {
        bool: ("true or false", lambda: isinstance(value, bool)),
        int: ("a whole number", lambda: isinstance(value, int) and not isinstance(value, bool)),
        float: (
            "a number that is not negative",
            lambda: isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0,
        ),
        str: ("a text", lambda: isinstance(value, str)),
        tuple: ("a list", lambda: isinstance(value, list)),
        dict: ("an object", lambda: isinstance(value, dict)),
        type(None): ("a list or an object", lambda: value is None or isinstance(value, (list, dict))),
    }
    kind, fits = kinds[type(default)]
    if not fits():
        raise OpsError(
            f"{name} in the configuration must be {kind}.",
            hint="Let the role monitoring write it again, or correct it.",
        )
    return float(value) if isinstance(default, float) else tuple(value) if isinstance(default, tuple) else value


def _within(options: suite.Options, notes: t.List[str]) -> suite.Options:
    """Without the waits of the WebSocket check that would outlast the deadline: it could only be unknown."""
    remaining = options.timeout - MARGIN
    limits: t.Dict[str, float] = {}
    for name in ("websocket_heartbeat_within", "websocket_dead_peer_within"):
        wait = float(getattr(options, name))
        limits[name] = wait if wait <= remaining else 0.0
        remaining -= limits[name]
        if wait and not limits[name]:
            notes.append(
                f"{name} is {wait:g} s, more than the deadline leaves: that is not waited for here. The playbook verify"
                " does."
            )
    return replace(
        options,
        websocket_heartbeat_within=limits["websocket_heartbeat_within"],
        websocket_dead_peer_within=limits["websocket_dead_peer_within"],
    )


def _state_dir(env: t.Mapping[str, str]) -> str:
    home = env.get("XDG_STATE_HOME") or (f"{env['HOME']}/.local/state" if env.get("HOME") else "")
    if os.geteuid() == 0 or os.access(restarts.DEFAULT_STATE_DIR, os.W_OK) or not home:
        return restarts.DEFAULT_STATE_DIR
    return f"{home}/wheels-ops"


def _discover(checks: t.Dict[str, t.Any], overrides: t.Dict[str, str], notes: t.List[str]) -> None:
    """What this host shows without a configuration: the backend's own ``.env`` here, services by the names of the
    report, open ports.
    """
    for option, value in _dotenv().items():
        overrides.setdefault(option, value)
    services = _services()
    names = {service["name"] for service in services}
    if "pam-backend" in names or _listens(BASE_URL):
        overrides.setdefault("base_url", BASE_URL)
    if "redis" in names or _listens(REDIS_URL):
        overrides.setdefault("redis_url", REDIS_URL)
    checks.update({key: tuple(value) if isinstance(value, list) else value for key, value in REPORTED.items()})
    checks["services"] = tuple(_with_gates(services, overrides))
    notes.append(f"There is no {CONFIG}: what is measured was found by looking around. The role monitoring writes one.")


def _dotenv() -> t.Dict[str, str]:
    """URLs of the backend's ``.env`` in the working directory. One that others could have put there is passed over."""
    for path in (Path(".env"), Path("backend/.env")):
        try:
            # Not through a link, nor a named pipe or a device: the directory may be another user's.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
                    continue
                if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o002:
                    continue
                lines = file.read(DOTENV_BYTES).decode("utf-8", errors="replace").splitlines()
        except OSError:
            continue
        pairs = [
            line.strip().removeprefix("export ").partition("=") for line in lines if not line.lstrip().startswith("#")
        ]
        return {
            VARIABLES[key.strip()]: value.strip().strip("'\"")
            for key, _sign, value in pairs
            if key.strip() in VARIABLES and value.strip()
        }
    return {}


def _listens(url: str) -> bool:
    parts = urlsplit(url)
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=1):
            return True
    except OSError:
        return False


def _services() -> t.List[t.Dict[str, str]]:
    """The services of the report that this host's manager knows, in the report's order."""
    units = {
        "redis-server": "redis",
        "redis": "redis",
        "pam-backend": "pam-backend",
        "celery-worker": "celery-worker",
        "celery-beat": "celery-beat",
    }
    try:
        states = open_manager().states(list(units))
    except OpsError:
        return []
    services: t.Dict[str, str] = {}
    for unit, name in units.items():
        if unit in states and states[unit].exists:
            services.setdefault(name, unit)
    return [{"name": name, "unit": unit} for name, unit in services.items()]


def _with_gates(
    services: t.Sequence[t.Mapping[str, str]], overrides: t.Mapping[str, str]
) -> t.List[t.Dict[str, t.Any]]:
    """The services with the gates and dependencies of the role ``services``."""
    redis, base = overrides.get("redis_url", REDIS_URL), overrides.get("base_url", BASE_URL)
    gates: t.Dict[str, t.Dict[str, t.Any]] = {
        "redis": {"type": "redis", "url": redis},
        "pam-backend": {"type": "http", "url": f"{base}/health"},
        "celery-worker": {"type": "celery", "url": redis},
        "celery-beat": {"type": "beat", "url": redis},
    }
    here = any(service["name"] == "redis" for service in services)
    return [
        {
            **service,
            "depends_on": ["redis"] if here and service["name"] != "redis" else [],
            "gate": gates[service["name"]],
        }
        for service in services
    ]
