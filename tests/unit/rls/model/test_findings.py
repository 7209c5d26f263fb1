# SPDX-License-Identifier: GPL-3.0-or-later
"""The shape and the order of what an audit says."""

from __future__ import annotations

import itertools
import json

import pytest

from wheels_ops.rls.model.findings import KINDS, SEVERITIES, Finding


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_finding_has_the_severity_and_title_of_its_kind(kind: str) -> None:
    finding = Finding(kind, "public.trips", "why")
    assert finding.severity in SEVERITIES and finding.title
    assert json.loads(json.dumps(finding.as_dict())) == {
        "kind": kind,
        "object": "public.trips",
        "why": "why",
        "statement": "",
        "severity": KINDS[kind][0],
        "details": {},
        "title": KINDS[kind][1],
    }


def test_finding_keeps_a_severity_of_its_own() -> None:
    assert Finding("recursion", "a", "why", severity="info").severity == "info"


def test_order_puts_the_worst_first_whatever_the_order_before() -> None:
    findings = [
        Finding("captured_column", "a", ""),
        Finding("recursion", "a", ""),
        Finding("recursion", "b", ""),
        Finding("always_true", "a", ""),
        Finding("nested_wraps", "a", ""),
    ]
    for shuffled in itertools.permutations(findings):
        assert sorted(shuffled, key=Finding.order) == findings


def test_identity_is_the_same_in_two_audits() -> None:
    """The reason may be worded with other numbers; it is the same finding."""
    assert Finding("recursion", "a", "3 roles").identity == Finding("recursion", "a", "4 roles").identity
    assert Finding("recursion", "a", "").identity != Finding("recursion", "b", "").identity
