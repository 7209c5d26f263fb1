# SPDX-License-Identifier: GPL-3.0-or-later
"""What cache_purge takes for a pattern, and what it refuses before it asks Redis anything."""

from __future__ import annotations

import re
import typing as t

import pytest

from wheels_ops.core.results import OpsError
from wheels_ops.remedies import cache_purge
from wheels_ops.remedies.cache_purge import Options


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("a*", ["a", "abc", "a\nb"], ["b", "ba"]),
        ("a?c", ["abc", "a*c"], ["ac", "abbc"]),
        ("a[bc]d", ["abd", "acd"], ["add", "a[d"]),
        ("a[^b]d", ["acd"], ["abd", "ad"]),
        ("a[a-c]d", ["abd"], ["azd"]),
        ("a\\*b", ["a*b"], ["axb"]),
        ("a.b(c)+", ["a.b(c)+"], ["axb(c)+", "a.bcc"]),
        ("a[b", ["a[b"], ["ab"]),
    ],
)
def test_a_glob_means_what_redis_means(pattern: str, yes: t.List[str], no: t.List[str]) -> None:
    compiled = re.compile(cache_purge.glob_to_regex(pattern), re.S)
    assert all(compiled.fullmatch(key) for key in yes)
    assert not any(compiled.fullmatch(key) for key in no)


def test_an_escaped_prefix_matches_itself_only() -> None:
    pattern = cache_purge.escape_glob("a[1]*?\\:") + "*"
    compiled = re.compile(cache_purge.glob_to_regex(pattern), re.S)
    assert compiled.fullmatch("a[1]*?\\:x")
    assert not compiled.fullmatch("a1xx\\:x")


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        Options(prefixes=("",)),
        Options(patterns=("*",)),
        Options(patterns=("?*",)),
        Options(patterns=("[a-z]*",)),
        Options(prefixes=("a:",), types=()),
        Options(prefixes=("a:",), types=("stringy",)),
        Options(prefixes=("a:",), idle_time=-1),
        Options(prefixes=("a:",), slice_ms=0),
        Options(prefixes=("a:",), max_keys=-1),
        Options(prefixes=("a:",), unprotect=("*",)),
        Options(prefixes=("a:",), unprotect=("celery",)),
    ],
)
def test_nonsense_is_refused(options: Options) -> None:
    with pytest.raises(OpsError):
        cache_purge.validate(options)


@pytest.mark.parametrize("prefix", ["celery-task-meta-", "_kombu.binding.", "unacked", "rate_limit:", "sess:", "email"])
def test_a_protected_prefix_is_refused_by_name(prefix: str) -> None:
    with pytest.raises(OpsError, match="protected") as caught:
        cache_purge.validate(Options(prefixes=(prefix,)))
    assert "unprotect" in caught.value.hint


def test_naming_the_protected_pattern_allows_it() -> None:
    cache_purge.validate(Options(prefixes=("celery-task-meta-",), unprotect=("celery*", "celery-task-meta-*")))
    with pytest.raises(OpsError):
        cache_purge.validate(Options(prefixes=("celery-task-meta-",), unprotect=("celery-task-meta-*",)))
