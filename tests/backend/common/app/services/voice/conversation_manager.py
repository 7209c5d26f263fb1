# SPDX-License-Identifier: MIT
"""Keeps the spoken conversations and says PAM's answers."""

from __future__ import annotations

import typing as t

from app.services.tts.tts_service import tts_service


class ConversationManager:
    def __init__(self) -> None:
        self._conversations: t.Dict[str, t.List[str]] = {}

    def count(self) -> int:
        return len(self._conversations)

    async def say(self, user_id: str, text: str) -> t.Optional[bytes]:
        self._conversations.setdefault(user_id, []).append(text)
        answer = await tts_service.synthesize_for_pam(text=text, user_id=user_id, context="voice_conversation")
        return answer.audio_data if answer else None


conversation_manager = ConversationManager()
