# SPDX-License-Identifier: GPL-3.0-or-later
"""A fleet under load, and what each of several ways to bring a release onto its hosts costs the users.

The load is that of ``tests.support.fleet_load``: through the proxy, all the time, from before the first phase.
"""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
import sys
import tempfile
import time
import typing as t
from dataclasses import dataclass
from pathlib import Path

from tests import fleet
from tests.bench.harness import REPOSITORY, Unavailable

#: Seconds of load before the first change.
QUIET = 45.0
UNITS = "pam-backend celery-worker"
ANSWERS = "until curl --silent --fail --max-time 20 --output /dev/null http://127.0.0.1:8000/health; do sleep 0.5; done"
#: What the usual role does to a host: stop, copy, start, and go on when it answers.
USUAL = (
    f"systemctl stop {UNITS} && rm -rf /production.new && cp -a /production /production.new && rm -rf /production.old &&"
    f" mv /production /production.old && mv /production.new /production && systemctl start {UNITS} && {ANSWERS}"
)


@dataclass(frozen=True)
class Phase:
    """From ``begin`` to ``end``, by the clock."""

    name: str
    begin: float
    end: float


class Fleet:
    """``directory`` is the one that the hosts were created with; ``environment`` that of ``molecule create``."""

    def __init__(self, directory: Path, environment: t.Mapping[str, str]) -> None:
        self.directory, self.environment = directory, environment
        self.phases: t.Dict[str, Phase] = {}

    def command(self, *words: str) -> str:
        done = subprocess.run(
            words, cwd=REPOSITORY, env=dict(self.environment), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)} failed:\n{done.stdout[-4000:]}{done.stderr[-2000:]}")
        return done.stdout

    def molecule(self, step: str) -> None:
        self.command("molecule", step, "-s", "fleet")

    def playbook(self, name: str, *words: str) -> None:
        self.command("ansible-playbook", "-i", str(self.directory / "inventory"), f"playbooks/{name}.yml", *words)

    def one_by_one(self, command: str) -> None:
        """Runs a command on one backend host after the other, by Ansible, as a playbook without a proxy would."""
        inventory = str(self.directory / "inventory")
        words = ["--forks", "1", "-m", "ansible.builtin.shell", "-a", command]
        self.command("ansible", "-i", inventory, "backend", *words)

    @contextlib.contextmanager
    def phase(self, name: str) -> t.Iterator[None]:
        begin = time.time()
        yield
        self.phases[name] = Phase(name, begin, time.time())


class Measured:
    """What the load saw in each phase."""

    def __init__(self, events: t.Sequence[t.Mapping[str, t.Any]], lab: Fleet) -> None:
        self.events, self.phases = events, lab.phases
        self.bad_tasks = {*events[-1]["lost_tasks"], *events[-1]["doubled_tasks"]}

    def _within(self, phase: str, kind: str) -> t.List[t.Mapping[str, t.Any]]:
        window = self.phases[phase]
        return [event for event in self.events if event["kind"] == kind and window.begin <= event["time"] <= window.end]

    def failed(self, phase: str) -> int:
        """Requests that failed."""
        return sum(bool(event["error"]) for event in self._within(phase, "http"))

    def lost(self, phase: str) -> int:
        """Tasks that were lost or ran twice, and messages that were lost."""
        tasks = sum(event["number"] in self.bad_tasks for event in self._within(phase, "task"))
        return tasks + len(self._within(phase, "lost message"))

    def p99(self, phase: str) -> float:
        """Milliseconds, the 99th percentile of the requests that were answered."""
        values = sorted(event["seconds"] for event in self._within(phase, "http") if not event["error"])
        if len(values) < 100:
            raise RuntimeError(f"Only {len(values)} requests were answered in {phase}.")
        return 1000.0 * float(values[int(len(values) * 0.99)])


def roll(lab: Fleet) -> None:
    """Every phase once, on a fleet that is under load."""
    with lab.phase("before"):
        time.sleep(QUIET)  # load is measured for a time, there is no condition to wait for
    with lab.phase("deploy"):
        lab.playbook("deploy")
    with lab.phase("rollback"):
        lab.playbook("rollback")
    with lab.phase("restart"):
        lab.one_by_one(f"systemctl restart {UNITS} && {ANSWERS}")
    with lab.phase("usual"):
        lab.one_by_one(USUAL)


@functools.lru_cache(maxsize=1)
def measured() -> Measured:
    """One fleet for all benchmarks of a run; nothing of it is left afterwards."""
    reason = fleet.unavailable()
    if reason:
        raise Unavailable(f"a fleet: {reason}")
    with tempfile.TemporaryDirectory(prefix="wops-fleet-") as place:
        environment = fleet.environment_of(place)
        directory = Path(environment["MOLECULE_EPHEMERAL_DIRECTORY"])
        lab = Fleet(directory, environment)
        try:
            for step in ("create", "prepare"):
                lab.molecule(step)
            roll(lab)
            (directory / "watch.stop").touch()
            return Measured(fleet.events(directory), lab)
        finally:
            lab.molecule("destroy")


def main(words: t.Sequence[str]) -> int:
    """The figures of all phases as JSON: for a fleet that is up and under load, its directory and prefix; else a new one."""
    if len(words) == 2:
        lab = Fleet(Path(words[0]), fleet.environment_of(str(Path(words[0]).parent)))
        lab.environment = {**lab.environment, "MOLECULE_EPHEMERAL_DIRECTORY": words[0], "WHEELS_OPS_FLEET": words[1]}
        roll(lab)
        (lab.directory / "watch.stop").touch()
        result = Measured(fleet.events(lab.directory), lab)
    else:
        result = measured()
    figures = {
        name: {"failed": result.failed(name), "lost": result.lost(name), "p99_ms": round(result.p99(name))}
        for name in result.phases
    }
    json.dump(figures, sys.stdout, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
