# SPDX-License-Identifier: GPL-3.0-or-later
"""app/wheels_ops/rate_limit.py, by a clock that the test turns."""

from __future__ import annotations

import re

from tests.app.wheels_ops.conftest import Leaves
from tests.support.collection import COLLECTION


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_take_allows_the_burst_and_then_the_rate(leaves: Leaves) -> None:
    clock = Clock()
    bucket = leaves.rate_limit.TokenBucket(0.5, 3, clock)
    assert [bucket.take() for _ in range(5)] == [0, 0, 0, 2.0, 2.0]
    clock.now += 1.5
    assert bucket.take() == 0.5
    clock.now += 0.5
    assert bucket.take() == 0
    clock.now += 3600
    assert [bucket.take() for _ in range(4)] == [0, 0, 0, 2.0], "no more than the burst is saved up"


def test_take_with_a_rate_of_0_is_unlimited(leaves: Leaves) -> None:
    bucket = leaves.rate_limit.TokenBucket(0, 1, Clock())
    assert [bucket.take() for _ in range(9)] == [0] * 9


def test_there_is_one_token_bucket_in_the_package() -> None:
    """What may be copied by hand alone has its own limit, but nothing below ``wheels_ops`` does."""
    files = (COLLECTION / "roles/backend_patches/files/app/wheels_ops").rglob("*.py")
    classes = [path.name for path in files if re.search(r"^class \w*Bucket", path.read_text(), re.M)]
    assert classes == ["rate_limit.py"]
