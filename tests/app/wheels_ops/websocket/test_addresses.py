# SPDX-License-Identifier: GPL-3.0-or-later
"""Whom a connection is counted against, by what its proxies say and whose word is taken."""

from __future__ import annotations

import typing as t

import pytest

from tests.support.websocket_module import load

(addresses,) = load("app.wheels_ops.websocket.addresses")


def scope(address: str, *headers: t.Tuple[str, str]) -> t.Dict[str, t.Any]:
    return {
        "type": "websocket",
        "client": (address, 5),
        "headers": [(name.encode(), value.encode()) for name, value in headers],
    }


@pytest.mark.parametrize(
    ("peer", "headers", "counted"),
    [
        ("8.8.8.8", (), "8.8.8.8"),
        ("8.8.8.8", (("X-Forwarded-For", "9.9.9.9"),), "8.8.8.8"),  # no proxy of ours: not believed
        (
            "10.0.0.1",
            (("X-Forwarded-For", "1.2.3.4, 9.9.9.9"),),
            "9.9.9.9",
        ),  # the entry of the proxy, not the client's own
        ("10.0.0.1", (("X-Forwarded-For", "9.9.9.9, 10.0.0.7"),), "9.9.9.9"),
        ("10.0.0.1", (("CF-Connecting-IP", "9.9.9.9"), ("X-Forwarded-For", "9.9.9.9, 172.64.0.1")), "9.9.9.9"),
        ("127.0.0.1", (), "127.0.0.1"),
        ("127.0.0.1", (("X-Forwarded-For", "nonsense, ,"),), "127.0.0.1"),
        ("::1", (("X-Forwarded-For", "2a00::1"),), "2a00::1"),
        ("testclient", (), "testclient"),
        ("10.0.0.1", (("X-Forwarded-For", "192.168.7.9"),), "192.168.7.9"),  # an intranet: its clients are private, too
        ("10.0.0.1", (("X-Forwarded-For", "203.0.113.9"),), "203.0.113.9"),
        (
            "10.0.0.1",
            (("X-Forwarded-For", "1.2.3.4"), ("X-Forwarded-For", "203.0.113.9")),
            "203.0.113.9",
        ),  # several lines are one list
        ("10.0.0.1", (("X-Forwarded-For", "1.2.3.4, 203.0.113.9:4711"),), "203.0.113.9"),
        ("10.0.0.1", (("X-Forwarded-For", "[2001:db8::7]:4711"),), "2001:db8::7"),
        (
            "10.0.0.1",
            (("X-Forwarded-For", "1.2.3.4, unknown"),),
            "10.0.0.1",
        ),  # left of what cannot be read anybody may have written
        (
            "10.0.0.1",
            (("CF-Connecting-IP", "1.2.3.4"), ("X-Forwarded-For", "203.0.113.9")),
            "203.0.113.9",
        ),  # not through Cloudflare
        (
            "10.0.0.1",
            (("CF-Connecting-IP", "203.0.113.9"), ("X-Forwarded-For", "172.64.0.1")),
            "203.0.113.9",
        ),  # its edge's proxy kept one hop
        ("10.0.0.1", (("CF-Connecting-IP", "203.0.113.9"),), "203.0.113.9"),
        ("172.64.0.1", (("X-Forwarded-For", "203.0.113.9"),), "203.0.113.9"),
        ("10.0.0.1", (("X-Real-IP", "203.0.113.9"),), "203.0.113.9"),
        ("10.0.0.1", (("X-Real-IP", "1.2.3.4"), ("X-Forwarded-For", "203.0.113.9")), "203.0.113.9"),
        ("8.8.8.8", (("X-Real-IP", "1.2.3.4"), ("CF-Connecting-IP", "1.2.3.4")), "8.8.8.8"),
        ("::ffff:10.0.0.1", (("X-Forwarded-For", "203.0.113.9"),), "203.0.113.9"),
        ("", (("X-Forwarded-For", "203.0.113.9"),), "203.0.113.9"),  # a Unix socket
    ],
)
def test_whom_a_connection_is_counted_against(
    peer: str, headers: t.Tuple[t.Tuple[str, str], ...], counted: str
) -> None:
    proxies = addresses.trusted_proxies("private, cloudflare")
    assert addresses.client_address(scope(peer, *headers), proxies) == counted


@pytest.mark.parametrize(
    ("peer", "headers", "counted"),
    [
        ("10.0.0.1", (("CF-Connecting-IP", "1.2.3.4"),), "10.0.0.1"),
        ("10.0.0.1", (("CF-Connecting-IP", "1.2.3.4"), ("X-Forwarded-For", "1.2.3.4, 172.64.0.1")), "172.64.0.1"),
        ("172.64.0.1", (("X-Forwarded-For", "1.2.3.4"),), "172.64.0.1"),
        ("10.0.0.1", (("X-Forwarded-For", "203.0.113.9"),), "203.0.113.9"),
    ],
)
def test_cloudflare_is_believed_only_where_it_is_named(
    peer: str, headers: t.Tuple[t.Tuple[str, str], ...], counted: str
) -> None:
    """Anybody can put a service of his own behind it, and say what he likes."""
    assert addresses.client_address(scope(peer, *headers)) == counted


@pytest.mark.parametrize(
    ("proxies", "counted"),
    [
        ("none", "10.0.0.1"),
        ("10.0.0.1", "192.168.7.9"),
        (" 10.0.0.0/8 , 192.168.7.9, nonsense, 10.0.0.7/8", "198.51.100.1"),
        ("192.168.0.0/16", "10.0.0.1"),
    ],
)
def test_whose_word_is_taken_is_configured(proxies: str, counted: str) -> None:
    asked = scope("10.0.0.1", ("X-Forwarded-For", "1.1.1.1, 198.51.100.1, 192.168.7.9"))
    assert addresses.client_address(asked, addresses.trusted_proxies(proxies)) == counted
