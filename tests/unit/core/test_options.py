# SPDX-License-Identifier: GPL-3.0-or-later
"""One form for every error of an option, without the secret that it may hold."""

from __future__ import annotations

import ast
import math
import re
import typing as t

import pytest

from tests.support.collection import COLLECTION
from wheels_ops.core import options
from wheels_ops.core.results import OpsError


def refused(call: t.Callable[[], t.Any]) -> str:
    """The message of the error, which has a hint."""
    with pytest.raises(OpsError) as caught:
        call()
    assert caught.value.hint
    return caught.value.message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            {"value": 700, "low": 1, "high": 600, "unit": "seconds"},
            "timeout must be between 1 and 600 seconds, got 700.",
        ),
        ({"value": 0, "low": 1, "high": 600}, "timeout must be between 1 and 600, got 0."),
        ({"value": math.nan, "low": 1, "high": 600}, "timeout must be between 1 and 600, got nan."),
        (
            {"value": 0, "low": 0, "high": 3600, "above": True},
            "timeout must be greater than 0 and at most 3,600, got 0.",
        ),
        ({"value": 0.0, "low": 0, "above": True, "unit": "MiB"}, "timeout must be greater than 0 MiB, got 0."),
        ({"value": 3, "low": 4096, "unit": "bytes"}, "timeout must be at least 4,096 bytes, got 3."),
        ({"value": 2.5e9, "low": 0.1, "high": 1e6}, "timeout must be between 0.1 and 1,000,000, got 2,500,000,000."),
    ],
)
def test_in_range_says_the_limits_and_the_value(words: t.Dict[str, t.Any], message: str) -> None:
    assert refused(lambda: options.in_range("timeout", **words)) == message


def test_in_range_takes_its_limits() -> None:
    for value in (1, 600, 1.5):
        options.in_range("timeout", value, 1, 600)
    options.in_range("timeout", 0.001, 0, 1, above=True)
    options.in_range("timeout", 10**30, 0)


@pytest.mark.parametrize(
    "value", ["ftp://h", "h:8000", "http://", "http://h:0", "http://h:99999", "http://[", "http://a b"]
)
def test_url_refuses_what_cannot_be_asked(value: str) -> None:
    assert refused(lambda: options.url("base_url", value)) == f"base_url must be an http(s) URL, got {value!r}."


@pytest.mark.parametrize(
    ("name", "value", "schemes"),
    [
        ("redis_url", "rediss:/:hunter2/0", options.REDIS),
        ("redis_url", "http://:hunter2@h", options.REDIS),
        ("base_url", "ftp://user:hunter2@h", options.HTTP),
        ("base_url", "user:hunter2@h", options.HTTP),
        ("url", "ws://h /?token=abc hunter2", options.WEBSOCKET),
    ],
)
def test_url_shows_no_secret(name: str, value: str, schemes: t.Tuple[str, ...]) -> None:
    message = refused(lambda: options.url(name, value, schemes))
    assert "hunter2" not in message
    assert message.endswith(f"got a value of {len(value)} characters.")


def test_url_takes_each_scheme_of_its_kind() -> None:
    for value, schemes in (
        ("https://[::1]:8443/x", options.HTTP),
        ("wss://h", options.WEBSOCKET),
        ("unix:///run/redis.sock", options.REDIS),
        ("rediss://:p@h:6380/1", options.REDIS),
    ):
        options.url("url", value, schemes)


def test_got_counts_the_characters_of_a_secret() -> None:
    assert options.got("ops_token", "abc") == "got a value of 3 characters"
    assert options.got("supervisor_password", "abc") == "got a value of 3 characters"
    assert options.got("state", "abc") == "got 'abc'"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: options.choice("state", "x", ("on", "off")), "state must be one of on, off, got 'x'."),
        (lambda: options.choices("types", ["b", "z", "a"], ("a", "b")), "types must contain only a, b, got z."),
        (lambda: options.choices("types", [], ("a", "b")), "types must not be empty."),
        (
            lambda: options.no_empty_entry("prefixes", ["a", ""], reason="it would match every key", hint="x"),
            "prefixes must not contain an empty entry: it would match every key.",
        ),
        (lambda: options.number("port", True, int), "port must be a whole number, got True."),
        (lambda: options.number("limit", "much"), "limit must be a number, got 'much'."),
        (lambda: options.regular_expression("demote", "("), "demote must be a regular expression of Python, got '(': "),
        (lambda: options.origin("origin", "https://h/"), "origin must be an origin, got 'https://h/'."),
        (lambda: options.origin("origin", "https://h:0"), "origin must be an origin, got 'https://h:0'."),
        (
            lambda: options.headers("headers", {"a b": 1}),
            "headers must be headers that can be sent, got the header 'a b'.",
        ),
        (
            lambda: options.headers("headers", {"a": "b\nc"}),
            "headers must be headers that can be sent, got the header 'a'.",
        ),
        (
            lambda: options.ascending("Thresholds", {"warning": 80, "critical": None, "emergency": 75}),
            "Thresholds must be in ascending order, got warning 80, emergency 75.",
        ),
        (lambda: options.absolute_path("path", "a/b"), "path must be an absolute path without '..', got 'a/b'."),
        (
            lambda: options.absolute_path("path", "/a/../b"),
            "path must be an absolute path without '..', got '/a/../b'.",
        ),
        (lambda: options.url_path("path", "/a b"), "path must be the path of a URL, got '/a b'."),
        (
            lambda: options.known_keys("The gate of web", {"typ": 1}, ("type",)),
            "The gate of web has unknown keys: typ.",
        ),
    ],
)
def test_each_validator_names_the_option_and_the_value(call: t.Callable[[], t.Any], message: str) -> None:
    assert refused(call).startswith(message)


def test_no_file_of_the_library_words_a_range_by_itself() -> None:
    """The former wordings: a range belongs to ``in_range``, an address to ``url``."""
    old = re.compile(r"[Ii]t goes from|out of range|Choose of|is no http|not an http|do not rise|is no URL of")
    words = []
    for path in sorted((COLLECTION / "plugins").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and old.search(node.value):
                words.append(f"{path.name}:{node.lineno}")
    assert words == []
