# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether a service does its work: one predicate for each type of gate, and waiting until it holds and keeps holding.

``rc`` of a restart and ``is-active`` caught none of eight start-up faults, an open port three, HTTP 200 five; an answer
from the new process (the socket's owner is in the service, the instance stays the same) that lasts for three seconds
caught all eight.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
import typing as t
import urllib.parse
from dataclasses import dataclass, field, replace

from ..core.results import OpsError
from ..host import processes
from . import broker, celery_workers, failure_causes, recognition, redis_errors
from .model import Gate, Manager, Service, ServiceState


@dataclass(frozen=True)
class Seen:
    """What one probe saw. ``ready`` False says in ``why`` what is missing; ``answer`` is the evidence.

    ``ready`` True with a ``why`` is worth to be known all the same. ``unfinished``: it is not ready, but ending it may
    kill work that it has begun.
    """

    ready: bool
    why: str = ""
    answer: t.Dict[str, t.Any] = field(default_factory=dict)
    unfinished: bool = False


def _not_ready(why: str, **answer: t.Any) -> Seen:
    return Seen(False, why, answer)


def probe(service: Service, state: ServiceState, manager: Manager) -> Seen:
    """One probe of one service, whose state was just read. Never raises for a service that is not ready."""
    if not state.running and not state.at_rest:
        return _not_ready(f"it is {state.state}")
    if service.gate.type in ("none", "state"):
        return Seen(True, state.at_rest, answer={"state": state.state})
    seen = _PROBES[service.gate.type](service, state, manager)
    if seen.ready or state.running:
        return seen
    # Our question has reached its socket, which starts it: whose answer it is can be told when it runs.
    deadline = time.monotonic() + service.gate.timeout
    while time.monotonic() < deadline:
        state = manager.states([service.unit])[service.unit]
        if state.running:
            return _PROBES[service.gate.type](service, state, manager)
        if state.settled:
            break
        time.sleep(0.05)
    return seen


def _owner(
    gate: Gate,
    host: str,
    port: int,
    state: ServiceState,
    manager: Manager,
    ask: t.Optional[t.Callable[[str, int], Seen]] = None,
) -> t.Optional[Seen]:
    """None where only processes of the service listen there, or a proxy in front of it; otherwise what is wrong.

    Behind a proxy the service counts as ready where it also answers, by ``ask``, where it listens itself. Without
    ``ask`` it has to listen by itself.
    """
    if not gate.verify_owner or port in (state.details.get("published_ports") or ()):
        return None  # a container's engine forwards a published port, and publishes none that another has
    members = manager.pids(state)
    listeners = processes.answering(port, host, pid=state.pid or None)
    if not listeners:
        return _not_ready(f"nothing of this host listens on {host}:{port}")
    holders = processes.holders([listener.inode for listener in listeners], members)
    foreign = [listener for listener in listeners if not holders[listener.inode]]
    if not foreign:
        return None
    others = sorted(
        {pid for pids in processes.holders([listener.inode for listener in foreign]).values() for pid in pids} - members
    )
    names = [{"pid": pid, "command": " ".join(" ".join(processes.command_line(pid)).split())[:200]} for pid in others]
    behind = f"{host}:{port} belongs to {_who(names)}, not to the service"
    if not ask or not others or not all(processes.program(pid) in recognition.FRONT_ENDS for pid in others):
        return _not_ready(behind, owners=names)
    own = processes.listening(members)
    if not own:
        return _not_ready(f"{behind}, which listens nowhere", owners=names)
    failures = [seen.why for seen in (ask(_reachable(each.address), each.port) for each in own) if not seen.ready]
    return _not_ready(failures[0], owners=names) if len(failures) == len(own) else None


def _reachable(address: str) -> str:
    """An address to connect to, of one that is listened on."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)


def _who(names: t.Sequence[t.Mapping[str, t.Any]]) -> str:
    return (
        ", ".join(f"process {entry['pid']} ({entry['command'] or 'unnamed'})" for entry in names)
        or "a process that is not visible"
    )


def _tcp(service: Service, state: ServiceState, manager: Manager) -> Seen:
    gate = service.gate

    def accept(host: str, port: int) -> Seen:
        try:
            with socket.create_connection((host, port), timeout=gate.timeout):
                return Seen(True, answer={"port": port})
        except OSError as error:
            return _not_ready(f"{host}:{port} does not accept: {error}")

    seen = accept(gate.host, gate.port)
    return (seen.ready and _owner(gate, gate.host, gate.port, state, manager, accept)) or seen


def _http(service: Service, state: ServiceState, manager: Manager) -> Seen:
    gate = service.gate
    parts = urllib.parse.urlsplit(gate.url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    seen = _request(gate, gate.url)

    def ask(own_host: str, own_port: int) -> Seen:
        # TLS ends at the proxy.
        place = f"[{own_host}]:{own_port}" if ":" in own_host else f"{own_host}:{own_port}"
        return _request(gate, urllib.parse.urlunsplit(parts._replace(scheme="http", netloc=place)), name=parts.netloc)

    return (seen.ready and _owner(gate, host, port, state, manager, ask)) or seen


def _request(gate: Gate, url: str, *, name: str = "") -> Seen:
    """What a gate's request to ``url`` sees; ``name`` is the host to ask for, where it is another than the URL's."""
    import requests

    parts = urllib.parse.urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    safe_url = urllib.parse.urlunsplit(parts._replace(netloc=f"{host}:{port}", query=""))
    try:
        with requests.Session() as session:
            session.trust_env = False  # a proxy of the environment must not answer for the service
            reply = session.get(
                url,
                headers={**({"Host": name.rpartition("@")[2]} if name else {}), **gate.headers},
                timeout=gate.timeout,
                verify=gate.validate_certs,
                allow_redirects=False,
                stream=True,
            )
            body = _body(reply, gate.timeout)
    except requests.exceptions.Timeout:
        return _not_ready(f"{safe_url} gives no answer within {gate.timeout:g} s")
    except requests.exceptions.RequestException as error:
        return _not_ready(f"{safe_url} cannot be reached: {type(error).__name__}")
    answer = {"status": reply.status_code, "body": body[:500]}
    if reply.status_code not in gate.status:
        return _not_ready(
            f"{safe_url} answers {reply.status_code}, expected {' or '.join(map(str, gate.status))}", **answer
        )
    if gate.body_regex and not re.search(gate.body_regex, body):
        return _not_ready(f"the body of {safe_url} does not match {gate.body_regex!r}", **answer)
    wrong = _json_mismatch(body, gate.body_json)
    if wrong:
        return _not_ready(f"the body of {safe_url}: {wrong}", **answer)
    return Seen(True, answer=answer)


def _body(reply: t.Any, timeout: float, limit: int = 1 << 20) -> str:
    """The body, at most 1 MiB of it, within the time that the whole request has: a drip of bytes is no answer."""
    import requests

    deadline, parts, size = time.monotonic() + timeout, [], 0
    for part in reply.iter_content(16384):
        parts.append(part)
        size += len(part)
        if size >= limit:
            break
        if time.monotonic() > deadline:
            raise requests.exceptions.ReadTimeout
    return b"".join(parts).decode("utf-8", "replace")


def _json_mismatch(body: str, expectation: t.Mapping[str, t.Any]) -> str:
    """What of ``{"checks.database": "ok"}`` (dotted path: value) the body does not say; empty where it says all."""
    if not expectation:
        return ""
    try:
        document = json.loads(body)
    except ValueError:
        return "it is not JSON"
    for path, value in expectation.items():
        found: t.Any = document
        for word in path.split("."):
            if isinstance(found, list):
                found = found[int(word)] if word.isdigit() and int(word) < len(found) else None
            else:
                found = found.get(word) if isinstance(found, dict) else None
        # Module options arrive as text where YAML did not quote: compare as JSON or as text.
        if found != value and str(found).lower() != str(value).lower():
            return f"{path} is {found!r}, expected {value!r}"
    return ""


def _redis(service: Service, state: ServiceState, manager: Manager) -> Seen:
    import redis

    gate = service.gate
    try:
        with contextlib.closing(broker.connect(gate.url, timeout=gate.timeout)) as client:
            client.ping()
            answer = _redis_facts(client)
    except redis.exceptions.RedisError as error:
        cause = redis_errors.explain(error, gate.url)
        if cause.details["redis_error"] in ("permission", "password"):
            raise cause from None
        return _not_ready(f"no PONG: {cause.message.rstrip('.')}")
    if answer.get("loading"):
        return _not_ready("it still loads its data", **answer)
    if gate.verify_owner and answer.get("pid") not in manager.pids(state):
        # A server in another PID namespace (a container) numbers itself differently: the socket decides then.
        parts = urllib.parse.urlsplit(gate.url)
        if parts.scheme == "unix" or parts.hostname is None:
            if "missing_right" in answer:
                raise OpsError(
                    f"Which process answers at the socket of {service.name} cannot be told: the right"
                    f" {answer['missing_right']} is missing.",
                    hint=(
                        f"Grant it (ACL SETUSER USER {answer['missing_right']}), or set verify_owner to false in the"
                        " gate."
                    ),
                )
            return _not_ready(f"process {answer['pid']} answered, which is not of the service", **answer)
        wrong = _owner(gate, parts.hostname, parts.port or 6379, state, manager)
        if wrong:
            return wrong
    return Seen(True, answer=answer)


def _redis_facts(client: t.Any) -> t.Dict[str, t.Any]:
    """What INFO says of a server that has answered a PING, which it does not while it loads; without the right to INFO,
    that right.
    """
    import redis

    try:
        info, server = client.info("persistence"), client.info("server")
    except redis.exceptions.NoPermissionError as error:
        return {"missing_right": redis_errors.missing_right(error)}
    return {
        "loading": int(info.get("loading", 0)),
        "pid": int(server.get("process_id", 0)),
        "uptime_s": int(server.get("uptime_in_seconds", 0)),
    }


def _celery(service: Service, state: ServiceState, manager: Manager) -> Seen:
    import redis

    gate, members = service.gate, manager.pids(state)
    # A worker in a container names itself after that, and numbers itself as there.
    inner = {processes.inner_pid(pid) for pid in members} if state.details.get("hostnames") else set()
    hosts = state.details.get("hostnames") or ()

    def is_ours(node: str, pid: int) -> bool:
        return pid in members or (pid in inner and node.rpartition("@")[2] in hosts)

    def ours(answers: t.Mapping[str, t.Mapping[str, t.Any]]) -> t.List[str]:
        return [
            node
            for node, stats in answers.items()
            if (not gate.node or re.search(gate.node, node))
            and (not gate.verify_owner or is_ours(node, int(stats.get("pid") or 0)))
        ]

    silent: t.List[celery_workers.Silence] = []
    try:
        with contextlib.closing(broker.connect(gate.url, timeout=gate.timeout + 2)) as client:
            watch = celery_workers.Watch(client, broker.port(gate.url), members)
            found = broker.workers(client, timeout=gate.timeout, wanted=lambda answers: bool(ours(answers)))
            nodes = ours(found)
            if not nodes:
                watch.wait(min(gate.timeout, 1.0))
                silent = watch.silent()
    except redis.exceptions.RedisError as error:
        cause = redis_errors.explain(error, gate.url)
        if cause.details["redis_error"] in ("permission", "password"):
            raise cause from None
        # A worker connects anew by itself. Whether it is at work cannot be asked: that is no reason to end it.
        return Seen(
            False,
            f"the broker does not work: {cause.message.rstrip('.')}",
            unfinished=not processes.all_stopped(members),
        )
    if nodes:
        return Seen(True, answer={"nodes": nodes})
    why = "no worker answered a ping"
    told = next(filter(None, (broker.other(broker_url(pid)) for pid in sorted(members))), "")
    if told:
        why = f"its broker is {told}, and its gate asks a Redis"
    elif found:
        why = "only workers that are not of the service answered"
    answer: t.Dict[str, t.Any] = {
        "silent": [{"pid": entry.pid, "verdict": entry.verdict, "why": entry.why} for entry in silent]
    }
    if found:
        answer["nodes"] = {node: stats.get("pid") for node, stats in found.items()}
    why += f": {'; '.join(entry.why for entry in silent)}" if silent else ""
    if silent and all(entry.works for entry in silent):
        return Seen(True, why, answer)
    return Seen(False, why, answer, unfinished=any(entry.unfinished for entry in silent))


def beats(app: str = "") -> t.Dict[int, t.List[str]]:
    """The processes on this host that run a Celery beat (``celery beat``, or a worker with ``-B``), for one application
    or all.
    """
    result = {}
    above = processes.parents()
    for pid in above:
        words = processes.command_line(pid)
        if is_beat(words) and (not app or _module(app) == _module(application(words))):
            result[pid] = words
    # A wrapper (sudo, unshare) that waits for its child is not a second beat.
    return {pid: words for pid, words in result.items() if not any(above.get(other) == pid for other in result)}


def is_beat(words: t.Sequence[str]) -> bool:
    """Whether a command line is that of a beat."""
    if " ".join(words).startswith("[celery beat"):
        return True  # with setproctitle installed Celery renames itself
    if "celery" not in [os.path.basename(word) for word in words[:6]]:
        return False
    return "beat" in words or ("worker" in words and any(word in ("-B", "--beat") for word in words))


def application(words: t.Sequence[str]) -> str:
    """What a Celery command line names with ``-A``; empty where it names none."""
    for index, word in enumerate(words):
        if word in ("-A", "--app"):
            return words[index + 1] if index + 1 < len(words) else ""
        if word.startswith("--app="):
            return word[6:]
        if word.startswith("-A") and len(word) > 2:
            return word[2:]
    return ""


#: Variables that name the broker of a Celery application; the backend reads the second.
_BROKERS = ("CELERY_BROKER_URL", "REDIS_URL")


def broker_url(pid: int) -> str:
    """The broker that a process of Celery was told, on its command line or in its environment; empty where it was not,
    or that may not be read.
    """
    words = processes.command_line(pid)
    for word, following in zip(words, [*words[1:], ""]):
        if word in ("-b", "--broker"):
            return following
        if word.startswith("--broker="):
            return word.partition("=")[2]
    variables = processes.environment(pid, _BROKERS)
    return next((variables[name] for name in _BROKERS if variables.get(name)), "")


def _broker(url: str) -> t.Tuple[str, int, str]:
    """What of a broker's URL says which broker it is: host, port and database."""
    parts = urllib.parse.urlsplit(url)
    host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname or ""
    return host, parts.port or 6379, parts.path.strip("/") or "0"


def _broker_of(pid: int) -> t.Optional[t.Tuple[str, int, str]]:
    """The broker that a process was told; None where it was not."""
    url = broker_url(pid)
    return _broker(url) if url else None


@dataclass(frozen=True)
class _Installation:
    """Whose beat it is: its application, its broker and the directory that it runs in; what is not known is empty."""

    app: str = ""
    broker: t.Optional[t.Tuple[str, int, str]] = None
    directory: t.Optional[t.Tuple[int, int]] = None


def _module(app: str) -> str:
    """The application by its module: ``celery -A shop``, ``shop.celery`` and ``shop.celery:app`` are one."""
    module = app.partition(":")[0]
    return module[: -len(".celery")] if module.endswith(".celery") else module


def _inode(path: str) -> t.Optional[t.Tuple[int, int]]:
    """A directory as the kernel tells it from others, also from one of the same name in a container."""
    try:
        facts = os.stat(path)
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def _installation(pid: int, words: t.Sequence[str]) -> _Installation:
    return _Installation(_module(application(words)), _broker_of(pid), _inode(f"/proc/{pid}/cwd"))


def _same(ours: _Installation, theirs: _Installation) -> t.Optional[bool]:
    """Whether two beats belong together; None where nothing tells."""
    if ours.app and theirs.app and ours.app != theirs.app:
        return False
    if ours.broker and theirs.broker:
        return ours.broker == theirs.broker
    if ours.directory and theirs.directory:
        return ours.directory == theirs.directory
    return None


def beats_of(url: str, members: t.Collection[int] = ()) -> t.Dict[int, t.List[str]]:
    """The beats on this host that send to the broker ``url``: those among ``members`` (the processes of our services),
    those that were told this broker, and those of an unknown one that are connected to it.

    A beat of which nothing tells that it is ours does not count.
    """
    found = {}
    for pid, words in beats().items():
        theirs = _broker_of(pid)
        ours = pid in members or theirs == _broker(url)
        if not ours and theirs is None and broker.port(url):
            try:
                ours = bool(processes.connected(broker.port(url), {pid}))
            except OpsError:  # its sockets may not be seen
                ours = False
        if ours:
            found[pid] = words
    return found


def foreign_beats(
    service: Service, members: t.Collection[int], definition: t.Tuple[t.Sequence[str], str] = ((), "")
) -> t.Dict[int, t.List[str]]:
    """Other beats of the same installation, which would send every periodic task a second time.

    A beat of another application, with another broker, or, where one of the two brokers is not known, in another
    directory is of another installation (staging beside production, another project). What is ours says the gate, else
    the running beat, else its ``definition`` (command and directory); where nothing tells, a beat counts. Whoever is
    not root cannot ask the beat of another user for its broker: that one is of another installation too, as services of
    one installation that we may restart are ours.
    """
    own = next(
        (
            _installation(pid, words)
            for pid, words in ((pid, processes.command_line(pid)) for pid in members)
            if is_beat(words)
        ),
        _Installation(_module(application(definition[0])), None, _inode(definition[1]) if definition[1] else None),
    )
    ours = replace(
        own,
        app=_module(service.gate.app) or own.app,
        broker=_broker(service.gate.url) if service.gate.url else own.broker,
    )
    result = {}
    for pid, words in beats().items():
        if pid in members:
            continue
        theirs = _installation(pid, words)
        elsewhere = ours.broker and not theirs.broker and processes.hidden(pid)
        if not elsewhere and _same(ours, theirs) is not False:
            result[pid] = words
    return result


def twice(several: t.Mapping[int, t.Sequence[str]]) -> str:
    """That several beats run for one application, with the processes."""
    names = [{"pid": pid, "command": " ".join(several[pid])[:200]} for pid in sorted(several)]
    return f"beat runs {len(several)} times ({_who(names)}): every periodic task is sent as often"


def _beat(service: Service, state: ServiceState, manager: Manager) -> Seen:
    gate, members = service.gate, manager.pids(state)
    own = {pid: words for pid, words in beats(gate.app).items() if pid in members}
    if not own:
        return _not_ready("no beat runs in it yet")
    others = foreign_beats(service, members)
    if len(own) > 1 or others:
        return _not_ready(twice({**own, **others}), pids=sorted({**own, **others}))
    if gate.schedule_file:
        pid = next(iter(own))
        schedule_time = schedule_written(gate.schedule_file)
        begun = processes.start_time(pid)
        fresh = schedule_time is not None and (begun is None or schedule_time >= begun - 1)
        # Berkeley DB, which Debian's Python takes, and SQLite, which 3.13 takes, hold the file open and write it when
        # beat ends.
        if schedule_time is None or not (
            fresh or processes.has_open(pid, [gate.schedule_file + suffix for suffix in _SCHEDULE_SUFFIXES])
        ):
            return _not_ready(
                f"it has neither written nor opened its schedule {gate.schedule_file} since it was started"
            )
        return Seen(True, answer={"pid": next(iter(own)), "schedule_age_s": round(time.time() - schedule_time, 1)})
    return Seen(True, answer={"pid": next(iter(own))})


#: What shelve adds to the name of the schedule file depends on the dbm of beat's Python.
_SCHEDULE_SUFFIXES = ("", ".db", ".dat", ".dir", ".bak", ".pag", "-wal")


def schedule_written(path: str) -> t.Optional[float]:
    """When beat last wrote its schedule; None where there is none yet."""
    times = []
    for suffix in _SCHEDULE_SUFFIXES:
        with contextlib.suppress(OSError):
            times.append(os.stat(path + suffix).st_mtime)
    return max(times) if times else None


_PROBES: t.Dict[str, t.Callable[[Service, ServiceState, Manager], Seen]] = {
    "tcp": _tcp,
    "http": _http,
    "redis": _redis,
    "celery": _celery,
    "beat": _beat,
}


@dataclass(frozen=True)
class Passed:
    """A gate that held: ``ms_to_ready`` until the first good probe, ``stable_ms`` for how long it then held."""

    state: ServiceState
    seen: Seen
    attempts: int
    ms_to_ready: float
    stable_ms: float


class NotHealthy(OpsError):
    """The deadline passed, or the service died meanwhile; ``details`` carries ``last_state`` and ``last_probe``."""


def wait_healthy(
    service: Service,
    manager: Manager,
    *,
    min_healthy_time: float,
    healthy_deadline: float,
    wait_sleep: float,
    read_log: bool = True,
    log_lines: int = 20,
) -> Passed:
    """Probes until the service was healthy for ``min_healthy_time`` without a break, and the same instance all along.

    Raises ``NotHealthy`` after ``healthy_deadline``, or as soon as its manager has given up or it restarted twice
    meanwhile.
    """
    stable_for = service.gate.min_healthy_time if service.gate.min_healthy_time is not None else min_healthy_time
    allowed = service.gate.healthy_deadline if service.gate.healthy_deadline is not None else healthy_deadline
    if service.gate.type == "none":
        stable_for = 0.0
    start = time.monotonic()
    attempts = 0
    healthy_since: t.Optional[float] = None
    instances: t.List[str] = []
    observation = _not_ready("it was not probed yet")
    while True:
        state = manager.states([service.unit])[service.unit]
        if state.instance and state.instance not in instances:
            instances.append(state.instance)
            healthy_since = None  # another process answers now: its time begins anew
        attempts += 1
        observation = probe(service, state, manager)
        now = time.monotonic()
        if observation.ready:
            after = manager.states([service.unit])[service.unit]
            if after.instance != state.instance:
                observation = _not_ready("it was restarted while it was probed")
        healthy_since = (healthy_since or now) if observation.ready else None
        if healthy_since is not None and now - healthy_since >= stable_for:
            return Passed(
                state,
                observation,
                attempts,
                round((healthy_since - start) * 1000, 1),
                round((now - healthy_since) * 1000, 1),
            )
        why = ""
        if state.failed or (not state.running and state.settled and not state.at_rest):
            why = (
                f"{service.name} ended:"
                f" {state.state}{f', result {state.result}' if state.result and state.result != 'success' else ''}"
            )
        elif len(instances) > 2:
            why = f"{service.name} crashes again and again: {len(instances)} instances within {now - start:.0f} s"
        elif now - start >= allowed:
            why = (
                f"{service.name} was not healthy within {allowed:g} s:"
                f" {observation.why or f'it did not stay healthy for {stable_for:g} s'}"
            )
        if why:
            log = tail(manager, service.unit, log_lines) if read_log else []
            # What a service that runs has written may be long over.
            steady = state.running and len(instances) == 1
            cause = "" if steady else failure_causes.explain(log, port=port_of(service.gate))
            raise NotHealthy(
                f"{why}. {cause}".rstrip(),
                hint=failure_causes.last_lines(log) if read_log else "",
                service=service.name,
                last_state=state.as_dict(),
                last_probe={"why": observation.why, **observation.answer},
                gate_attempts=attempts,
                log=log,
            )
        time.sleep(min(wait_sleep, max(0.01, allowed - (now - start))))


def port_of(gate: Gate) -> int:
    """The port on which a service listens by its gate, 0 where the gate does not say."""
    if gate.type not in ("tcp", "http", "redis"):
        return 0
    try:
        return gate.port or urllib.parse.urlsplit(gate.url).port or 0
    except ValueError:
        return 0


def tail(manager: Manager, unit: str, lines: int) -> t.List[str]:
    """The last lines of a service for a failure's report; the failure itself matters more than a log that cannot be
    read.
    """
    try:
        return [line[:500] for line in manager.log_tail(unit, lines)]
    except OpsError as error:
        return [f"(its log cannot be read: {error})"]
