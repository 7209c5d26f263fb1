# SPDX-License-Identifier: GPL-3.0-or-later
"""Every check has a test without servers that notices when its grading is broken on purpose.

The long measurement is ``make mutants``.
"""

from __future__ import annotations

import ast
import typing as t

import pytest

from tests.mutants import edits, trees

FILES = trees.targets(["checks", "health/thresholds.py", "health/scores.py"])


def files_of(target: str) -> t.List[str]:
    """The unit tests of its name, or those that are named for it."""
    return next((group for group in trees.tests_of(target) if group[0].startswith("tests/unit/")), [])


@pytest.fixture(scope="module")
def tree() -> t.Iterator[trees.Tree]:
    with trees.Tree() as copy:
        # In one run: to start pytest costs more than the tests.
        files = sorted({path for target in FILES for path in files_of(target)})
        assert [group.tests for group in copy.baseline("any file", [files])] == [files], (
            "tests that fail without a mutant notice nothing"
        )
        yield copy


@pytest.mark.parametrize("target", FILES)
def test_a_broken_grading_is_noticed(tree: trees.Tree, target: str) -> None:
    """A comparison flipped, a value dropped, an early ok."""
    files = files_of(target)
    assert files, f"No unit test imports {target}."
    groups = [trees.Group(files, seconds=20)]
    source = (trees.REPOSITORY / trees.LIBRARY / target).read_text(encoding="utf-8")
    mutants = edits.gradings(source, target)
    assert mutants
    survivors = [mutant for mutant in mutants if not tree.notices(target, mutant.source, groups)]
    assert not survivors, "\n".join(f"{target}:{mutant.line} ({mutant.kind})\n{mutant.diff}" for mutant in survivors)


SAMPLE = '''
"""Text."""
from __future__ import annotations
import typing as t

LIMITS: t.Sequence[int] = (5, 7)

def check(value: float, *, timeout: float = 3.0) -> Check:
    """Text."""
    message = "so much"
    if value > 5 and value != 9:
        raise OpsError("too much", hint="take less")
    try:
        value = read(value, timeout=timeout, mode="x")
    except OSError:
        log.warning("no")
    return Check(name="x", status="warning", message=f"{value + 1} of {LIMITS}", remedy="cure")
'''


def test_faults_are_those_that_a_grading_may_have() -> None:
    mutants = edits.mutants(SAMPLE)
    kinds = {mutant.kind for mutant in mutants}
    assert kinds >= {
        "comparison",
        "boundary",
        "condition",
        "constant",
        "value dropped",
        "early ok",
        "status",
        "branch removed",
        "raise removed",
        "handler removed",
    }
    original = ast.unparse(ast.parse(SAMPLE))
    assert len({mutant.source for mutant in mutants} | {original}) == len(mutants) + 1
    for mutant in mutants:
        assert mutant.diff and SAMPLE.splitlines()[mutant.line - 1].strip(), mutant
    changes = "\n".join(mutant.diff for mutant in mutants)
    for change in (
        "value <= 5",
        "value >= 5",
        "value == 9",
        "value > 5 or value != 9",
        "(5, 8)",
        "(7,)",
        "status='ok'",
    ):
        assert change in changes, change


def test_text_types_and_waits_are_left_alone() -> None:
    for mutant in edits.mutants(SAMPLE):
        for part in ('"""Text."""', "'so much'", "t.Sequence[int]", "timeout: float=3.0", "timeout=timeout"):
            assert part in mutant.source, mutant.diff
        # Whole statements and a whole message may go; their words do not change.
        for part, within in (
            ("{value + 1} of {LIMITS}", "message="),
            ("OpsError('too much', hint='take less')", "OpsError("),
            ("log.warning('no')", "log.warning("),
        ):
            assert part in mutant.source or within not in mutant.source, mutant.diff


def test_a_sample_is_the_same_for_the_same_seed() -> None:
    everything = edits.mutants(SAMPLE)
    assert edits.sample(SAMPLE, 5, "a") == edits.sample(SAMPLE, 5, "a") != edits.sample(SAMPLE, 5, "b")
    assert len(edits.sample(SAMPLE, 5, "a")) == 5
    assert edits.sample(SAMPLE, 0, "a") == edits.sample(SAMPLE, 999, "a") == everything


def test_a_copy_of_the_tree_is_changed_and_the_tree_is_not(tree: trees.Tree) -> None:
    path = trees.REPOSITORY / trees.LIBRARY / "health/scores.py"
    before = path.read_bytes(), path.stat().st_mtime_ns
    groups = tree.baseline("health/scores.py", [["tests/unit/health/test_scores.py"]])
    hurried = [trees.Group(group.tests, seconds=-3.9) for group in groups]
    source = path.read_text()
    assert tree.notices("health/scores.py", "raise RuntimeError\n", groups) == "failed"
    assert tree.notices("health/scores.py", "import time\ntime.sleep(99)\n", hurried) == "endless"
    assert tree.notices("health/scores.py", source + "# the same\n", groups) == ""
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before


def test_tests_that_fail_anyway_notice_nothing(tree: trees.Tree) -> None:
    broken, fine = "tests/unit/test_broken.py", "tests/unit/test_fine.py"
    (tree.root / broken).write_text("def test_x():\n    assert False\n")
    (tree.root / fine).write_text("def test_x():\n    pass\n")
    assert [group.tests for group in tree.baseline("x.py", [[broken, fine], [fine]])] == [[fine], [fine]]
    for groups in ([[broken]], []):
        with pytest.raises(trees.BrokenTests, match=r"tests of x.py must pass before"):
            tree.baseline("x.py", groups)


def test_every_file_that_is_measured_has_tests_without_servers() -> None:
    for target in trees.targets():
        assert files_of(target), target
    for target, names in trees.TESTS.items():
        assert target in trees.targets() and all((trees.REPOSITORY / name).is_file() for name in names), target
