# SPDX-License-Identifier: MIT
"""PAM's model client, made when the module is imported: it wants the event loop of the server that imports it."""

from __future__ import annotations

import asyncio
import typing as t


class PAMServiceError(RuntimeError):
    """A part of PAM cannot be used."""


class AIService:
    def __init__(self) -> None:
        self.background: t.Set[asyncio.Task[None]] = set()
        try:
            asyncio.get_running_loop()
        except RuntimeError as error:
            raise PAMServiceError(f"Failed to initialize AI service: {error}") from error


ai_service = AIService()
