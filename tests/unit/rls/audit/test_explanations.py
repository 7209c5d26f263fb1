# SPDX-License-Identifier: GPL-3.0-or-later
"""``rls explain`` knows every kind of finding."""

from __future__ import annotations

import pytest

from wheels_ops.command_line import main
from wheels_ops.rls.audit.explanations import EXPLANATIONS
from wheels_ops.rls.model.findings import KINDS


def test_every_kind_is_explained() -> None:
    assert set(EXPLANATIONS) == set(KINDS)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_explain_says_how_to_fix_it_by_hand(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rls", "explain", kind]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(KINDS[kind][1]) and "By hand:" in shown


def test_explain_without_a_kind_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rls", "explain"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(KINDS)
