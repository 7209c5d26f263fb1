# SPDX-License-Identifier: MIT
"""Which voice a user hears in which situation."""

from __future__ import annotations

import typing as t

from app.core.config import get_settings

from .base_tts import TTSEngine, VoiceProfile


class VoiceManager:
    def __init__(self) -> None:
        self.preferences: t.Dict[t.Tuple[str, str], VoiceProfile] = {}
        self.ratings: t.List[t.Dict[str, t.Any]] = []

    def default_voice(self) -> VoiceProfile:
        return VoiceProfile(
            get_settings().TTS_VOICE_DEFAULT, "Aria", "female", "adult", "american", "en", TTSEngine.EDGE
        )

    def voice_for(self, user_id: t.Optional[str], context: str) -> VoiceProfile:
        for name in (context, "default"):
            if user_id and (user_id, name) in self.preferences:
                return self.preferences[(user_id, name)]
        return self.default_voice()

    def set_preference(self, user_id: str, voice: VoiceProfile, context: t.Optional[str], is_default: bool) -> None:
        self.preferences[(user_id, "default" if is_default or not context else context)] = voice

    def rate(self, user_id: str, voice: VoiceProfile, rating: float, feedback: t.Optional[str]) -> None:
        self.ratings.append({"user_id": user_id, "voice_id": voice.voice_id, "rating": rating, "feedback": feedback})


voice_manager = VoiceManager()
