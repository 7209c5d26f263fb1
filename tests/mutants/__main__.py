# SPDX-License-Identifier: GPL-3.0-or-later
"""``make mutants``: how many small faults in the library the tests notice, and which they do not.

    python -m tests.mutants [FILE ...] [--number N | --all] [--seed S] [--jobs N] [--unit] [--goal PERCENT] [--list]

FILE is relative to ``module_utils`` (``checks/http.py``, ``state``); without one: what grades, locks and remembers.
Ends with 0 when the goal is reached, 1 when it is not, 2 when it could not be measured.
"""

from __future__ import annotations

import argparse
import os
import queue
import signal
import sys
import threading
import typing as t

from .edits import Mutant, sample
from .trees import LIBRARY, REPOSITORY, BrokenTests, Tree, targets, tests_of

GOAL = 90.0


def _arguments(words: t.Optional[t.Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants",
        description="How many small faults in the library the tests notice.",
    )
    parser.add_argument(
        "only",
        nargs="*",
        metavar="FILE",
        help="relative to module_utils; default: checks, thresholds, scores, the lock and the journal",
    )
    parser.add_argument("--number", type=int, default=25, help="mutants of each file (25)")
    parser.add_argument("--all", action="store_true", help="every mutant instead of a sample; takes hours")
    parser.add_argument("--seed", default="1", help="chooses the sample (1)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="files tried side by side (one a core)")
    parser.add_argument("--unit", action="store_true", help="tests without servers only")
    parser.add_argument("--goal", type=float, default=GOAL, help=f"percent to be noticed ({GOAL:g})")
    parser.add_argument("--list", action="store_true", help="show the mutants and the tests, and run nothing")
    return parser.parse_args(words)


def _groups(target: str, unit: bool) -> t.List[t.List[str]]:
    return [group for group in tests_of(target) if not unit or group[0].startswith("tests/unit/")]


def _try(tree: Tree, target: str, mutants: t.Sequence[Mutant], groups: t.Sequence[t.Sequence[str]]) -> t.List[str]:
    usable = tree.baseline(target, groups)
    return [tree.notices(target, mutant.source, usable) for mutant in mutants]


def _report(target: str, mutants: t.Sequence[Mutant], outcomes: t.Sequence[str]) -> None:
    noticed = sum(map(bool, outcomes))
    if not outcomes:
        print(f"{target}: not measured, 0 of {len(mutants)} noticed")
        return
    endless = outcomes.count("endless")
    print(f"{target}: {noticed} of {len(mutants)} noticed{f', {endless} by not ending' if endless else ''}")
    for mutant, outcome in zip(mutants, outcomes):
        if not outcome:
            print(f"  survives: {LIBRARY / target}:{mutant.line} ({mutant.kind})")
            print("".join(f"    {line}\n" for line in mutant.diff.splitlines()), end="")
    sys.stdout.flush()


def main(words: t.Optional[t.Sequence[str]] = None) -> int:
    arguments = _arguments(words)
    # An end by signal runs the same clean-up as Ctrl-C: the copies and what runs in them.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    work: queue.SimpleQueue[t.Tuple[str, t.List[Mutant], t.List[t.List[str]]]] = queue.SimpleQueue()
    try:
        for target in targets(arguments.only):
            source = (REPOSITORY / LIBRARY / target).read_text(encoding="utf-8")
            mutants = sample(source, 0 if arguments.all else arguments.number, f"{arguments.seed} {target}")
            groups = _groups(target, arguments.unit)
            if arguments.list:
                tests = "; ".join(", ".join(group) for group in groups)
                print(f"{target}: {len(mutants)} mutants; {tests or 'no test'}")
                print(
                    "".join(
                        f"  {mutant.line} ({mutant.kind})\n    {mutant.diff}\n".replace("\n-", "\n    -").replace(
                            "\n+",
                            "\n    +",
                        )
                        for mutant in mutants
                    ),
                    end="",
                )
            elif mutants:
                work.put((target, mutants, groups))
    except BrokenTests as error:
        print(error, file=sys.stderr)
        return 2
    return 0 if arguments.list else _measure(work, arguments.jobs, arguments.goal)


def _measure(work: queue.SimpleQueue[t.Tuple[str, t.List[Mutant], t.List[t.List[str]]]], jobs: int, goal: float) -> int:
    totals = {"noticed": 0, "tried": 0}
    broken: t.List[str] = []
    printing, stopped = threading.Lock(), threading.Event()
    trees: t.List[Tree] = []

    def worker(tree: Tree) -> None:
        while True:
            try:
                target, mutants, groups = work.get_nowait()
            except queue.Empty:
                return
            try:
                outcomes = _try(tree, target, mutants, groups)
            except BrokenTests as error:
                # No test, or none that passes, notices nothing.
                outcomes = []
                broken.append(f"{target}: {error}")
            if stopped.is_set():
                return
            with printing:
                totals["noticed"] += sum(map(bool, outcomes))
                totals["tried"] += len(mutants)
                _report(target, mutants, outcomes)

    try:
        for _ in range(max(1, min(jobs, work.qsize()))):
            trees.append(Tree())
        threads = [threading.Thread(target=worker, args=(tree,), daemon=True) for tree in trees]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        stopped.set()
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        for tree in trees:
            tree.close()
    if not totals["tried"]:
        print("There was nothing to try.", file=sys.stderr)
        return 2
    share = 100.0 * totals["noticed"] / totals["tried"]
    print(f"{totals['noticed']} of {totals['tried']} mutants noticed: {share:.1f} %, goal {goal:g} %")
    for message in broken:
        print(message, file=sys.stderr)
    return 2 if broken else 0 if share >= goal else 1


if __name__ == "__main__":
    sys.exit(main())
