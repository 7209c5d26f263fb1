# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How long the backend keeps a WebSocket whose other end has died: the incident's sockets hung for minutes."""

from __future__ import annotations

import dataclasses
import time
import typing as t

from ..health.check import Check


def seconds_until_closed(url: str, *, within: float, origin: str = "") -> t.Optional[float]:
    """Opens a socket, answers nothing, and gives the seconds until the server ends it; None when it does not
    ``within``.

    Frames are read raw, so that the library does not answer pings for us: a dead peer answers none.
    """
    import websocket

    start = time.monotonic()
    connection = websocket.create_connection(url, timeout=within, origin=origin or None, suppress_origin=not origin)
    try:
        while True:
            remaining = within - (time.monotonic() - start)
            if remaining <= 0:
                return None
            connection.settimeout(remaining)
            try:
                frame = connection.recv_frame()
            except websocket.WebSocketTimeoutException:
                return None
            except (websocket.WebSocketException, OSError):
                return time.monotonic() - start
            if frame is None or frame.opcode == websocket.ABNF.OPCODE_CLOSE:
                return time.monotonic() - start
    finally:
        connection.shutdown()


def add_to(check: Check, url: str, *, within: float, origin: str = "") -> Check:
    """A WebSocket check with the end of a dead peer measured as well; one that could not connect, or was let in without
    a token only, is given as it is.
    """
    if "handshake_ms" not in check.details or not check.details.get("authenticated", True):
        return check  # a server that sends us away at once says nothing of peers that die
    took = seconds_until_closed(url, within=within, origin=origin)
    details = {**check.details, "dead_peer_closed_after_s": None if took is None else round(took, 1)}
    if took is None:
        return dataclasses.replace(
            check,
            status="critical",
            value=within,
            unit="s, dead peer still connected",
            remedy="managed_files",
            details=details,
            message=f"A peer that answers nothing is still connected after {within:g} s."
            + ("" if check.status == "ok" else f" {check.message}"),
        )
    return dataclasses.replace(
        check, message=f"{check.message} A dead peer is disconnected after {took:.1f} s.", details=details
    )
