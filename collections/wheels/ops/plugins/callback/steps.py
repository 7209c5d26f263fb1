# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One line a step of a run."""

from __future__ import annotations

DOCUMENTATION = r"""
name: steps
type: stdout
short_description: Show a run in one line a step
version_added: 1.1.0
description:
  - Shows each task that did something on a host in one line, with the seconds it took, and what it changed and why.
  - What only the controller does (assertions, facts, includes) is left out where it succeeds. Messages of
    C(debug) are shown, and every failure with its whole message.
  - With more than one host, a bar shows how many have finished the step.
  - Lines fit the terminal, 80 columns where there is none. Colors and the moving bar are left out where the output is
    no terminal, and colors where E(NO_COLOR) is set.
  - With C(--diff), differences are shown below their step.
author:
  - The wheels.ops maintainers (@wheels-ops)
"""

EXAMPLES = r"""
# ANSIBLE_STDOUT_CALLBACK=wheels.ops.steps ansible-playbook -i inventory wheels.ops.deploy
"""

import os
import re
import shutil
import sys
import textwrap
import time
import typing as t

from ansible import constants
from ansible.plugins.callback import CallbackBase

#: Actions of the controller alone, and those of them whose message a person wants to read.
_CONTROLLER = frozenset(
    {
        "assert",
        "add_host",
        "fail",
        "group_by",
        "import_role",
        "import_tasks",
        "include_role",
        "include_tasks",
        "include_vars",
        "meta",
        "set_fact",
        "validate_argument_spec",
    }
)
_COLORS = {"ok": "32", "changed": "33", "failed": "31", "quiet": "2"}
_BAR = 10
#: Columns of "  12.3 s  changed  ".
_TIME = 8
_STATE = 9
_PLAIN_WIDTH = 80


class Step:
    """One task of a play: who has finished it, and what became of it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.hosts: t.Set[str] = set()
        self.started = time.monotonic()
        self.finished: t.List[str] = []
        self.changed: t.List[str] = []
        self.reasons: t.List[str] = []
        self.differences: t.List[str] = []

    def add_reason(self, reason: str) -> None:
        if reason and reason not in self.reasons:
            self.reasons.append(reason)


def short(name: str) -> str:
    """``environment: Install the file`` of ``wheels.ops.environment : Install the file``."""
    role, sign, task = name.partition(" : ")
    return f"{role.rpartition('.')[2]}: {task}" if sign else name


def fit(text: str, width: int) -> str:
    """The text in at most ``width`` columns, on one line."""
    text = " ".join(text.split())
    return text if len(text) <= width else text[: max(0, width - 3)].rstrip() + "..."


def share_bar(part: int, whole: int) -> str:
    filled = _BAR * part // whole if whole else 0
    return f"[{'#' * filled}{'.' * (_BAR - filled)}] {part}/{whole}"


class CallbackModule(CallbackBase):
    """See DOCUMENTATION."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "wheels.ops.steps"

    def __init__(self, *words: t.Any, **options: t.Any) -> None:
        super().__init__(*words, **options)
        self._terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
        self._colored = self._terminal and not os.environ.get("NO_COLOR") and not constants.ANSIBLE_NOCOLOR
        self._began = time.monotonic()
        self._step: t.Optional[Step] = None
        self._messages: t.List[t.Any] = []

    # -- what is written

    def _width(self) -> int:
        return shutil.get_terminal_size((_PLAIN_WIDTH, 24)).columns if self._terminal else _PLAIN_WIDTH

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def _color(self, kind: str, text: str) -> str:
        return f"\033[{_COLORS[kind]}m{text}\033[0m" if self._colored else text

    def _line(self, kind: str, seconds: float, state: str, text: str) -> None:
        if self._terminal:
            self._write("\r\033[K")
        head = f"{seconds:>{_TIME - 2}.1f} s  {state:<{_STATE - 2}}  "
        self._write(self._color(kind, head) + fit(text, self._width() - len(head)) + "\n")

    def _below(self, kind: str, text: str) -> None:
        indent = " " * (_TIME + _STATE + 2)
        for line in text.splitlines() or [""]:
            for part in textwrap.wrap(line, max(20, self._width() - len(indent)), break_on_hyphens=False) or [""]:
                self._write(self._color(kind, indent + part) + "\n")

    def _move_bar(self) -> None:
        step = self._step
        if step and self._terminal and len(step.hosts) > 1:
            text = fit(f"{share_bar(len(step.finished), len(step.hosts))} {short(step.name)}", self._width() - 1)
            self._write(f"\r\033[K{text}")

    def _end_step(self) -> None:
        step, self._step = self._step, None
        if step is None:
            return
        if self._terminal:
            self._write("\r\033[K")
        if not step.finished:
            return
        hosts = f"{share_bar(len(step.finished), len(step.hosts))} " if len(step.hosts) > 1 else ""
        reason = f": {'; '.join(step.reasons)}" if step.changed and step.reasons else ""
        state = "changed" if step.changed else "ok"
        self._line(state, time.monotonic() - step.started, state, f"{hosts}{short(step.name)}{reason}")
        self._write("".join(step.differences))

    # -- what Ansible reports

    def v2_playbook_on_play_start(self, play: t.Any) -> None:
        self._end_step()
        self._messages = []
        name = play.get_name().strip()
        # It asserts that there is a host, and nothing else.
        if name != "Require hosts":
            checked = " (check mode: nothing is changed)" if play.check_mode else ""
            self._write(f"{self._color('quiet', fit(f'{name}{checked}', self._width()))}\n")

    def v2_playbook_on_task_start(self, task: t.Any, is_conditional: bool) -> None:
        self._end_step()
        self._messages = []
        self._step = Step(task.get_name().strip())

    def v2_playbook_on_handler_task_start(self, task: t.Any) -> None:
        self.v2_playbook_on_task_start(task, False)

    def v2_playbook_on_include(self, included_file: t.Any) -> None:
        self._step = None

    def v2_runner_on_start(self, host: t.Any, task: t.Any) -> None:
        if self._step:
            self._step.hosts.add(host.get_name())

    def v2_runner_on_skipped(self, result: t.Any) -> None:
        if self._step:
            self._step.hosts.discard(result._host.get_name())

    def v2_runner_on_ok(self, result: t.Any) -> None:
        action, answer = result._task.action.rpartition(".")[2], result._result
        if action == "debug":
            message = answer.get("msg", "")
            # Hosts that say the same say it once.
            if message not in self._messages:
                self._messages.append(message)
                self._show_message(message)
            return
        if action in _CONTROLLER or self._step is None:
            return
        step = self._step
        step.finished.append(result._host.get_name())
        if answer.get("changed"):
            step.changed.append(result._host.get_name())
            step.add_reason(_reason(answer))
        self._handle_warnings(answer)
        self._move_bar()

    def v2_on_file_diff(self, result: t.Any) -> None:
        answer = result._result
        entries = [item for item in answer["results"] if item.get("changed")] if result._task.loop else [answer]
        for entry in entries:
            if entry.get("diff") and self._step:
                text = self._get_diff(entry["diff"] if isinstance(entry["diff"], list) else [entry["diff"]])
                self._step.differences.append(text if self._colored else _without_colors(text))

    def v2_runner_on_failed(self, result: t.Any, ignore_errors: bool = False) -> None:
        step = self._step
        name = short(result._task.get_name().strip())
        if ignore_errors:
            return
        self._line(
            "failed",
            time.monotonic() - step.started if step else 0.0,
            "failed",
            f"{name} on {result._host.get_name()}",
        )
        self._below("failed", _message(result._result))
        if step:
            step.finished = [host for host in step.finished if host != result._host.get_name()]

    def v2_runner_on_unreachable(self, result: t.Any) -> None:
        self._line(
            "failed",
            time.monotonic() - self._step.started if self._step else 0.0,
            "no host",
            f"{result._host.get_name()} cannot be reached",
        )
        self._below("failed", _message(result._result))

    def v2_playbook_on_no_hosts_matched(self) -> None:
        self._write("No host matches.\n")

    def v2_playbook_on_stats(self, stats: t.Any) -> None:
        self._end_step()
        seconds = time.monotonic() - self._began
        for host in sorted(stats.processed):
            numbers = stats.summarize(host)
            if host == "localhost" and not (numbers["failures"] or numbers["changed"]) and len(stats.processed) > 1:
                continue
            failed = numbers["failures"] or numbers["unreachable"]
            state = "failed" if failed else "changed" if numbers["changed"] else "ok"
            self._line(state, seconds, state, f"{host}: {numbers['changed']} changed")

    # -- parts

    def _show_message(self, message: t.Any) -> None:
        text = "\n".join(map(str, message)) if isinstance(message, list) else str(message)
        if self._terminal:
            self._write("\r\033[K")
        self._write(text + "\n")


def _without_colors(text: str) -> str:
    return re.sub(r"\033\[[0-9;]*m", "", text)


def _reason(answer: t.Mapping[str, t.Any]) -> str:
    """What a module says that it changed: its message, or of one without any the place."""
    if "censored" in answer:
        return ""
    message = answer.get("msg")
    if isinstance(message, str) and message and message != "All items completed":
        return message.rstrip(".")
    return str(answer.get("dest") or answer.get("path") or answer.get("name") or "")


def _message(answer: t.Mapping[str, t.Any]) -> str:
    """Why a task failed; of a loop, the reasons of its items."""
    if "censored" in answer:
        return "What it says is hidden, as it may hold a secret."
    items = [str(item.get("msg")) for item in answer.get("results") or [] if item.get("failed") and item.get("msg")]
    message = answer.get("msg") or answer.get("stderr") or answer.get("reason") or "no reason given"
    return "\n".join(dict.fromkeys(items)) or (
        "\n".join(map(str, message)) if isinstance(message, list) else str(message)
    )
