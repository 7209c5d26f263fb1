# SPDX-License-Identifier: MIT
"""Which client a connection is counted against: its address, as far as the proxies in front can be trusted to name it.

Environment: ``WEBSOCKET_TRUSTED_PROXIES`` (addresses and networks, separated by commas, whose ``X-Forwarded-For`` is
believed; ``private`` stands for loopback and private networks, ``cloudflare`` for Cloudflare's, with its
``CF-Connecting-IP``; or ``none``; without it: ``private``). Anybody can put a service of his own behind Cloudflare, so it
is believed only where it is named.
"""

from __future__ import annotations

import ipaddress
import re
import typing as t

from app.core.websocket_manager import log
from app.wheels_ops.websocket.asgi import header

Address = t.Union[ipaddress.IPv4Address, ipaddress.IPv6Address]
Network = t.Union[ipaddress.IPv4Network, ipaddress.IPv6Network]
_PRIVATE = "127.0.0.0/8,::1/128,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,169.254.0.0/16,100.64.0.0/10,fc00::/7,fe80::/10"
# https://www.cloudflare.com/ips/; the hosting service of the first user stands behind it.
_CLOUDFLARE = (
    "173.245.48.0/20,103.21.244.0/22,103.22.200.0/22,103.31.4.0/22,141.101.64.0/18,108.162.192.0/18,190.93.240.0/20,"
    "188.114.96.0/20,197.234.240.0/22,198.41.128.0/17,162.158.0.0/15,104.16.0.0/13,104.24.0.0/14,172.64.0.0/13,"
    "131.0.72.0/22,2400:cb00::/32,2606:4700::/32,2803:f800::/32,2405:b500::/32,2405:8100::/32,2a06:98c0::/29,"
    "2c0f:f248::/32"
)


def trusted_proxies(text: str) -> t.Tuple[Network, ...]:
    """The networks whose word about a client's address is taken. Nothing configured: private ones."""
    if text.strip().lower() == "none":
        return ()
    networks: t.List[Network] = []
    words = [word.strip() for word in (text.strip() or "private").split(",")]
    names = {"private": _PRIVATE, "cloudflare": _CLOUDFLARE}
    for entry in ",".join(names.get(word.lower(), word) for word in words).split(","):
        try:
            networks.append(ipaddress.ip_network(entry.strip(), strict=False))
        except ValueError:
            if entry.strip():
                log(
                    "error",
                    f"🔌 WEBSOCKET_TRUSTED_PROXIES: {entry.strip()[:60]!a} is neither an address nor a network;"
                    " left out",
                )
    return tuple(networks)


_DEFAULT_PROXIES = trusted_proxies("")
_CLOUDFLARE_NETWORKS = trusted_proxies(_CLOUDFLARE)


def parse_address(text: object) -> t.Optional[Address]:
    """An address as proxies write it, perhaps with a port; None for anything else."""
    text = str(text or "").strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def within(address: Address, networks: t.Iterable[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)


def client_address(scope: t.Mapping[str, t.Any], proxies: t.Sequence[Network] = _DEFAULT_PROXIES) -> str:
    """Whom to count a connection against: from the TCP peer on, each trusted proxy's word for the one before it.

    What precedes the first address that is no trusted proxy came from the client itself and is not looked at.
    """
    peer = (scope.get("client") or ("unknown", 0))[0]
    peer_address = parse_address(peer)
    # A Unix socket has no address: whoever listens there is trusted.
    if peer_address is not None and not within(peer_address, proxies):
        return str(peer_address)
    if not proxies:
        return str(peer)
    forwarded = [
        part
        for key, value in scope.get("headers", ())
        if key.lower() == b"x-forwarded-for"
        for part in value.decode("latin-1").split(",")
    ]
    nearest = peer_address
    for entry in reversed(forwarded):
        address = parse_address(entry)
        if address is None:
            break
        nearest = address
        if not within(address, proxies):
            return str(address)
    by_cloudflare = parse_address(header(scope, b"cf-connecting-ip"))
    through_cloudflare = not forwarded or (nearest is not None and within(nearest, _CLOUDFLARE_NETWORKS))
    if by_cloudflare is not None and through_cloudflare and believes_cloudflare(proxies):
        return str(by_cloudflare)
    real_ip = None if forwarded else parse_address(header(scope, b"x-real-ip"))
    return str(real_ip or nearest or peer)


def believes_cloudflare(proxies: t.Sequence[Network]) -> bool:
    return all(network in proxies for network in _CLOUDFLARE_NETWORKS)


def is_cloudflare(address: str, proxies: t.Sequence[Network]) -> bool:
    """Whether an address that clients are counted by is Cloudflare's, which speaks for many and is not believed."""
    parsed = parse_address(address)
    return parsed is not None and within(parsed, _CLOUDFLARE_NETWORKS) and not believes_cloudflare(proxies)


def counting_key(address: str) -> str:
    """An IPv6 client has a whole /64 to choose its address from."""
    ip_address = parse_address(address)
    if ip_address is None or ip_address.version == 4 or ip_address.is_loopback:
        return address
    return str(ipaddress.ip_network((ip_address, 64), strict=False))


def is_nameless_proxy(scope: t.Mapping[str, t.Any], proxies: t.Sequence[Network]) -> bool:
    """Whether the TCP peer is a proxy that does not say for whom it speaks: its address stands for everybody.

    Anything on a private network is such a proxy; on this very machine it is one when it brings a browser's page from
    elsewhere.
    """
    peer = parse_address((scope.get("client") or ("", 0))[0])
    if peer is None or not within(peer, proxies):
        return False
    if any(header(scope, name) for name in (b"x-forwarded-for", b"x-real-ip", b"cf-connecting-ip")):
        return False
    if not peer.is_loopback:
        return True
    origin = header(scope, b"origin") or ""
    return bool(origin) and not re.match(r"https?://(localhost|127\.[0-9.]+|\[::1\])(:[0-9]+)?$", origin)
