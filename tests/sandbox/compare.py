# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m tests.sandbox compare``: the same load on the broken sandbox and on the same one after ``deploy``, side
by side.

Measured from outside: resident memory of the backend's process tree from /proc, response times of an HTTP client, the
first audio of the speech endpoint. The broken backend and the deployed one get the same load for the same time.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import typing as t

import psutil

from tests.sandbox import demo, lifecycle, supervisor
from tests.sandbox.layout import Sandbox
from tests.support.backend_env import make_jwt
from tests.support.bursty_load import CUT_OFF, SECONDS, USER, bursts_and_pace, first_audio

Figures = t.Dict[str, float]
#: Key, title, unit.
ROWS = (
    ("mean_rss", "resident memory of the backend, mean", "MB"),
    ("peak_rss", "resident memory of the backend, highest", "MB"),
    ("worst", "the slowest request", "ms"),
    ("p95", "response time, 95th percentile", "ms"),
    ("first_audio", "time to first audio, median", "ms"),
)
#: Sentences that are spoken; without speech each costs CUT_OFF seconds, and one is enough to know.
SPOKEN = 20


def resident_mb(sandbox: Sandbox) -> float:
    """Resident memory of the backend's process and of its children in MiB; pages that they share count for each."""
    root = psutil.Process(supervisor.rpc(sandbox).getProcessInfo("pam-backend")["pid"])
    total = root.memory_info().rss
    for child in root.children(recursive=True):
        try:
            total += child.memory_info().rss
        except psutil.NoSuchProcess:  # a speech engine that has spoken
            continue
    return total / 1_048_576


def figures(sandbox: Sandbox) -> Figures:
    """One measurement of the sandbox as it is; takes SECONDS and the time of the speech."""
    facts = sandbox.facts()
    pid = supervisor.rpc(sandbox).getProcessInfo("pam-backend")["pid"]
    token = make_jwt(USER, key=facts.secret_key)
    found = bursts_and_pace(facts.http_port, token, lambda: resident_mb(sandbox))
    spoken = [first_audio(facts.http_port, token, 0)]
    while len(spoken) < SPOKEN and spoken[0] < 1000 * CUT_OFF:
        spoken.append(first_audio(facts.http_port, token, len(spoken)))
    if supervisor.rpc(sandbox).getProcessInfo("pam-backend")["pid"] != pid:
        raise RuntimeError(
            "the backend was restarted while it was measured: the figures would be those of two processes"
        )
    return {**found, "first_audio": statistics.median(spoken)}


def measured(sandbox: Sandbox) -> t.Tuple[Figures, Figures]:
    """(broken, after ``deploy``), both of this sandbox, which is made, broken and deployed on."""
    lifecycle.up(sandbox)
    lifecycle.break_it(sandbox)
    lifecycle.say(f"the broken backend under {SECONDS:g} s of bursty load")
    before = figures(sandbox)
    lifecycle.say("ansible-playbook -i inventories/sandbox playbooks/deploy.yml")
    if demo.playbook("deploy", sandbox=sandbox):
        raise RuntimeError("the deployment failed: there is nothing to compare")
    lifecycle.say(f"the deployed backend under the same {SECONDS:g} s of load")
    return before, figures(sandbox)


def table(before: Figures, after: Figures) -> str:
    lines = [f"{'':40} {'before':>14} {'after':>14}"]
    for key, title, unit in ROWS:
        old = "no audio" if key == "first_audio" and before[key] >= 1000 * CUT_OFF else f"{before[key]:,.0f} {unit}"
        lines.append(f"{title:40} {old:>14} {f'{after[key]:,.0f} {unit}':>14}")
    return "\n".join(lines)


def run(sandbox: Sandbox) -> int:
    """0 when memory, slowest request and first audio are all better after the deployment; ``compare.json`` keeps the
    figures.
    """
    started = time.monotonic()
    before, after = measured(sandbox)
    (sandbox.reports / "compare.json").write_text(json.dumps({"before": before, "after": after}, indent=1) + "\n")
    sys.stdout.write(f"\n{table(before, after)}\n\n")
    lifecycle.say(f"{time.monotonic() - started:.0f} s in all; the figures: {sandbox.reports / 'compare.json'}")
    return 0 if all(after[key] < before[key] for key in ("mean_rss", "worst", "first_audio")) else 1
