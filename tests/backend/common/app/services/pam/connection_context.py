# SPDX-License-Identifier: MIT
"""What PAM knows of a socket's page; these releases keep none."""

from __future__ import annotations

import typing as t


async def remember(connection_id: str, context: t.Dict[str, t.Any]) -> None:
    return None


def recall(connection_id: str) -> t.Optional[t.Dict[str, t.Any]]:
    return None
