# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What every check gets: the options of the run, and what its checks share of the host."""

from __future__ import annotations

import threading
import typing as t
from dataclasses import dataclass, field

from ..health import subjects
from ..health.thresholds import DEFAULTS, LOG_MAX_BYTES, Thresholds
from ..services.manager import open_manager
from ..services.model import Manager, Service, ServiceState

T = t.TypeVar("T")


@dataclass(frozen=True)
class Options:
    """What there is on a host to be measured.

    A subject that lacks what it needs is ``skipped``, and says what it needs.
    """

    subjects: t.Sequence[str] = subjects.NAMES
    timeout: float = 60.0
    thresholds: t.Mapping[str, Thresholds] = field(default_factory=dict)
    scope: str = "host"
    base_url: str = ""
    http_paths: t.Sequence[str] = ("/health",)
    #: Where a deployed backend says how it is (``docs/health-api.md``). Releases without it answer 404.
    health_path: str = "/api/v1/system/health"
    stall_path: str = "/api/memory"
    database_dsn: str = ""
    database_tables: t.Optional[t.Mapping[str, t.Sequence[str]]] = None
    schemas: t.Optional[t.Sequence[str]] = None
    redis_url: str = ""
    cors_origins: t.Sequence[str] = ()
    cors_path: str = "/api/v1/pam/chat"
    websocket_path: str = ""
    websocket_heartbeat_within: float = 0.0
    websocket_dead_peer_within: float = 0.0
    tts_path: str = "/api/v1/tts/test"
    filesystems: t.Sequence[str] = ("/",)
    disk_budgets: t.Mapping[str, int] = field(default_factory=dict)
    logs: t.Sequence[str] = ()
    log_max_bytes: int = LOG_MAX_BYTES
    services: t.Sequence[t.Mapping[str, t.Any]] = ()
    service_manager: str = "auto"
    supervisor_socket: str = ""
    supervisor_username: str = ""
    supervisor_password: str = field(default="", repr=False)
    memory_limits_mb: t.Mapping[str, float] = field(default_factory=dict)

    def open_manager(self) -> Manager:
        """The manager of this host's services. Raises ``OpsError`` where there is none."""
        return open_manager(**self.manager_arguments())

    def manager_arguments(self) -> t.Dict[str, str]:
        """What ``services.manager.open_manager`` takes."""
        return {
            "kind": self.service_manager,
            "socket": self.supervisor_socket,
            "username": self.supervisor_username,
            "password": self.supervisor_password,
        }

    def limits(self, threshold: str) -> Thresholds:
        """The limits of one of the thresholds, by default those of the incident report."""
        return self.thresholds.get(threshold, DEFAULTS[threshold])


@dataclass(frozen=True)
class View:
    """From where a run looks. ``outside``: from another machine, so that nothing that is seen here is the host's.

    ``ops_token``: with which the application says more of its own health.
    """

    outside: bool = False
    ops_token: str = field(default="", repr=False)


class Once(t.Generic[T]):
    """A call that is made at most once, from however many threads; its error is raised again for each caller."""

    def __init__(self, call: t.Callable[[], T]) -> None:
        self._call = call
        self._lock = threading.Lock()
        self._results: t.List[T] = []
        self._errors: t.List[Exception] = []

    def __call__(self) -> T:
        with self._lock:
            if not self._results and not self._errors:
                try:
                    self._results.append(self._call())
                except Exception as error:
                    self._errors.append(error)
        if self._errors:
            raise self._errors[0]
        return self._results[0]


class HostContext:
    """The host as all checks of one run see it.

    Its services, their manager and their states are each looked up once, and only if a check asks. ``manager``,
    ``states`` and ``pids`` raise ``OpsError`` where nothing answers for the services; a check that can measure without
    them does so.
    """

    def __init__(
        self, services: t.Sequence[Service], open_manager: t.Callable[[], Manager], view: t.Optional[View] = None
    ) -> None:
        self.services: t.Tuple[Service, ...] = tuple(services)
        self.view = view or View()
        #: The service manager.
        self.manager: t.Callable[[], Manager] = Once(open_manager)
        #: unit -> what the manager says of it; empty, without asking, where no service is listed.
        self.states: t.Callable[[], t.Mapping[str, ServiceState]] = Once(self._states)
        #: service -> its processes, for those that run; empty, without asking, where no service is listed.
        self.pids: t.Callable[[], t.Mapping[str, t.Set[int]]] = Once(self._pids)

    def _states(self) -> t.Mapping[str, ServiceState]:
        return self.manager().states([service.unit for service in self.services]) if self.services else {}

    def _pids(self) -> t.Mapping[str, t.Set[int]]:
        states = self.states()
        return {
            service.name: self.manager().pids(states[service.unit])
            for service in self.services
            if states[service.unit].pid
        }
