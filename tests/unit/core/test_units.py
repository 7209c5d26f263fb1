# SPDX-License-Identifier: GPL-3.0-or-later
"""Sizes and durations: what is read, what is refused, and what people are shown."""

from __future__ import annotations

import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wheels_ops.core.results import OpsError
from wheels_ops.core.units import duration, quantity, readable, size


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (0, 0),
        ("17", 17),
        ("17b", 17),
        ("1K", 1024),
        ("1kB", 1000),
        ("1.5M", 1_572_864),
        (" 50 MB ", 50_000_000),
        ("2GiB", 2_147_483_648),
        ("1t", 1_099_511_627_776),
        ("0.1b", 0),
    ],
)
def test_size_reads_powers_of_1024_and_of_1000(value: t.Union[str, int], count: int) -> None:
    """As logrotate's ``size 50M`` and as a disk's label say it."""
    assert size(value, "max_size") == count


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("90", 90), (1.5, 1.5), ("15m", 900), ("15min", 900), ("24h", 86_400), ("7d", 604_800), ("4w", 2_419_200)],
)
def test_duration_reads_what_people_write(value: t.Union[str, float], seconds: float) -> None:
    assert duration(value, "older_than") == seconds


@pytest.mark.parametrize("read", [size, duration])
@pytest.mark.parametrize("value", ["", "-1", "1e3", "five", "5 x", "5MBs", "nan", "inf", "1,5", "9" * 30, "٣"])
def test_nonsense_is_refused_by_the_name_of_its_option(read: t.Callable[[str, str], float], value: str) -> None:
    with pytest.raises(OpsError) as caught:
        read(value, "max_size")
    assert "max_size" in caught.value.message and repr(value) in caught.value.message
    assert "xample" in caught.value.hint


@given(st.integers(min_value=0, max_value=2**50))
def test_readable_is_within_rounding_of_the_number(count: int) -> None:
    """Read back by itself, it is the number to one digit behind the point of its unit."""
    number, unit = readable(count).split()
    factor = {"bytes": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}[unit]
    assert abs(float(number) * factor - count) <= 0.051 * factor


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (97.84, "%", "97.8 %"),
        (61_400, "bytes of audio", "61.4 kB of audio"),
        (568.4, "ms", "568 ms"),
        (1234, "ms stall", "1.2 s stall"),
        (20, "keys without expiry", "20 keys without expiry"),
        (12_345.6, "tasks", "12,346 tasks"),
        (2.5, "load", "2.5 load"),
        (None, "%", "no answer"),
        ("v1", "", "v1"),
    ],
)
def test_quantity_is_what_a_person_reads(value: object, unit: str, text: str) -> None:
    assert quantity(value, unit) == text
