# SPDX-License-Identifier: GPL-3.0-or-later
"""Values and names of the cache under invented input: nothing but the listed types is ever made, nothing crashes."""

from __future__ import annotations

import os
import typing as t

import pytest

from tests.support.cache_program import run
from tests.support.patched_tree import Tree, patched_tree

SEED = os.environ.get("WHEELS_OPS_SEED", "1")
COUNT = os.environ.get("WHEELS_OPS_FUZZ", "30000")


@pytest.fixture
def tree(tmp_path: t.Any) -> Tree:
    return patched_tree(tmp_path, "services/cache_service.py")


def test_values_of_the_typed_form_come_back_as_they_were(tree: Tree) -> None:
    found = run(
        tree,
        "redis://127.0.0.1:1",
        """
    import random
    rng = random.Random(int(sys.argv[1]))
    def made(depth=0):
        kind = rng.randrange(16 if depth < 4 else 11)
        if kind == 0: return None
        if kind == 1: return rng.random() < 0.5
        if kind == 2: return rng.randrange(-10**30, 10**30)
        if kind == 3: return rng.uniform(-1e300, 1e300)
        if kind == 4:
            return "".join(chr(rng.choice([rng.randrange(32, 127), rng.randrange(0xd7ff), rng.randrange(0xe000, 0x10ffff)])) for _ in range(rng.randrange(6)))
        if kind == 5: return rng.randbytes(rng.randrange(9))
        if kind == 6: return dt.datetime.fromtimestamp(rng.randrange(2**31), rng.choice([None, dt.timezone.utc, dt.timezone(dt.timedelta(hours=5))]))
        if kind == 7: return decimal.Decimal(rng.randrange(10**20)) / 7
        if kind == 8: return uuid.UUID(int=rng.getrandbits(128))
        if kind == 9: return dt.timedelta(days=rng.randrange(-999, 999), microseconds=rng.randrange(10**9))
        if kind == 10: return rng.choice([dt.date(2024, 2, 29), dt.time(1, 2, 3, 4)])
        items = [made(depth + 1) for _ in range(rng.randrange(4))]
        if kind == 11: return items
        if kind == 12: return tuple(items)
        if kind == 13: return {rng.choice(["$type", "v", "a", "b", ""]): item for item in items}
        if kind == 14: return {rng.choice([1, None, ("a", 2), dt.date(2025, 1, 1), "x"]): item for item in items}
        return {rng.randrange(9) for _ in items}
    wrong = 0
    for _ in range(int(sys.argv[2])):
        value = made()
        back = module.decode(module.encode(value, typed=True))
        wrong += repr(back) != repr(value)
    return wrong
    """,
        SEED,
        COUNT,
    )
    assert found == 0, f"seed {SEED}"


def test_anything_in_redis_is_a_value_or_a_value_error(tree: Tree) -> None:
    found = run(
        tree,
        "redis://127.0.0.1:1",
        """
    import pickle, random
    rng = random.Random(int(sys.argv[1]))
    seeds = [module.encode({"a": [1, {"b": None}]}), module.encode({1: (2, {3}), "d": dt.datetime(2025, 1, 1)}, typed=True),
             pickle.dumps({"a": 1}, 0).decode("latin-1"), '\\x01{"$type":"datetime","v":"2025"}', '\\x01{"$type":"timedelta","v":[1,2,3]}', 
             '\\x01{"$type":"dict","v":[[1,2]]}',
             '\\x01{"$type":"bytes","v":"AA=="}']
    words = ["$type", '"v"', "tuple", "set", "dict", "bytes", "[", "]", "{", "}", ",", ":", '"', "null",
             "1e999", "-", "NaN", "\\\\ud800", "\\x01", "\\x00", "cos\\nsystem\\n"]
    types, other = set(), []
    for _ in range(int(sys.argv[2])):
        text = list(rng.choice(seeds))
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(text) + 1)
            if rng.random() < 0.5: text[at:at] = rng.choice(words)
            else: text[at:at + rng.randrange(4)] = chr(rng.randrange(0x250))
        try:
            types.add(type(module.decode("".join(text))).__name__)
        except ValueError:
            pass
        except Exception as error:
            other.append(f"{type(error).__name__}: {''.join(text)!r}")
    return [sorted(types), other[:5]]
    """,
        SEED,
        COUNT,
    )
    known = {
        "dict",
        "list",
        "str",
        "int",
        "float",
        "NoneType",
        "bool",
        "tuple",
        "set",
        "frozenset",
        "bytes",
        "datetime",
        "date",
        "time",
        "timedelta",
        "Decimal",
        "UUID",
    }
    assert found[1] == [] and set(found[0]) <= known, f"seed {SEED}"


def test_foreign_prefixes_cannot_be_configured_as_ours(tree: Tree) -> None:
    found = run(
        tree,
        "redis://127.0.0.1:1",
        "return sorted(module.LEGACY_PREFIXES)",
        env={
            "CACHE_LEGACY_PREFIXES": (
                "mine:, pam:mine:, rate_limit:, pam:response:, pam:cache:, celery-x:, _kombu.binding:, unacked:,"
                " a'..b:, *, :, no_colon, threats:"
            ),
        },
    )
    assert {"mine:", "pam:mine:", "user_profile:", "pam:profiles:"} <= set(found)
    assert not [
        name
        for name in found
        if name.startswith(
            ("rate_limit", "pam:response", "pam:cache", "celery", "_kombu", "unacked", "threats", "a'", "*", ":", "no_")
        )
    ]


def test_long_keys_stay_distinct_and_bounded(tree: Tree) -> None:
    assert run(
        tree,
        "redis://127.0.0.1:1",
        """
    names = {cache._name("response:/x:" + "q" * 1000 + str(number)) for number in range(100)} | {cache._name("\\u00e9" * 400), cache._name("\\ud800" * 400)}
    return [len(names), max(len(name.encode("utf-8", "surrogatepass")) for name in names) <= 700, all(name.startswith("pam:cache:") for name in names),
            cache._name("short"), module.escape_glob("a*[b]?\\\\^")]
    """,
    ) == [102, True, True, "pam:cache:short", "a\\*\\[b\\]\\?\\\\\\^"]


def test_a_mock_or_redis_that_raises_anything_never_reaches_a_caller(tree: Tree) -> None:
    assert (
        run(
            tree,
            "redis://127.0.0.1:1",
            """
    from unittest.mock import AsyncMock
    from redis.exceptions import BusyLoadingError, OutOfMemoryError, ReadOnlyError, ResponseError
    out = []
    for error in (OSError("x"), RuntimeError("x"), TypeError("x"), ReadOnlyError("x"), ResponseError("x"), OutOfMemoryError("x"),
                  BusyLoadingError("x"), asyncio.TimeoutError()):
        cache.redis = AsyncMock()
        for name in ("get", "mget", "set", "unlink", "exists", "info", "evalsha", "ping", "dbsize", "eval"):
            getattr(cache.redis, name).side_effect = error
        await cache.initialize(); await cache.set("a", 1); await cache.delete("a"); await cache.delete("a*"); await cache.exists("a")
        await cache.batch_get(["a"]); await cache.clear_expired(); await cache.get_stats(); await cache.clear_prefix("a")
        out.append([await cache.get("b"), await cache.get_or_set("b", lambda: 3)])
    return out
    """,
        )
        == [[None, 3]] * 8
    )


def test_a_mock_that_answers_with_mocks_ends_every_call(tree: Tree) -> None:
    """The backend's own tests put an AsyncMock in: no cursor of it is ever the last one."""
    assert run(
        tree,
        "redis://127.0.0.1:1",
        """
    from unittest.mock import AsyncMock
    cache.redis = AsyncMock()
    await cache.set("a", 1); await cache.delete("a*")
    return [await cache.get("a"), await cache.delete_pattern("a*"), await cache.clear_prefix("a"), (await cache.clear_expired()).finished]
    """,
        timeout=20,
    ) == [None, 0, 0, False]
