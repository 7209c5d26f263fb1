# SPDX-License-Identifier: MIT
"""The engines of the speech chain, what is known of each (breaker), and one judged attempt at speaking."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import os
import re
import time
import typing as t
import urllib.request
from collections import deque
from dataclasses import dataclass, field

from app.core.logging import get_logger
from app.services.tts.base_tts import AudioFormat, TTSEngine, TTSRequest, VoiceProfile
from app.services.tts.fallback_tts import Audio, FallbackTTSService, SpeechError, Voice, container_of, find_programs, wav_facts, wav_with_sizes

logger = get_logger(__name__)

#: Failures in a row that open the breaker: what is refused at once will be refused again, a time-out may be an accident.
TOLERATED = {"refused": 1, "missing": 1, "timeout": 2}
TOLERATED_OTHER = 3
#: The first pause between two probes of an open breaker, in seconds.
PROBE_FIRST = 5.0
#: The same after silence: it may have been the texts ("..." has no sound, nor have letters that a voice does not know).
PROBE_SILENT = 1.0
EDGE_VOICE = re.compile(r"[a-z]{2,3}-[A-Z]{2}(-[A-Za-z]+)?-[A-Za-z]+Neural")
EDGE_VOICES = {
    ("en-US", "female"): "en-US-AriaNeural", ("en-US", "male"): "en-US-GuyNeural",
    ("en-GB", "female"): "en-GB-SoniaNeural", ("en-GB", "male"): "en-GB-RyanNeural",
    ("en-AU", "female"): "en-AU-NatashaNeural", ("en-AU", "male"): "en-AU-WilliamNeural",
    ("de-DE", "female"): "de-DE-KatjaNeural", ("de-DE", "male"): "de-DE-ConradNeural",
    ("fr-FR", "female"): "fr-FR-DeniseNeural", ("fr-FR", "male"): "fr-FR-HenriNeural",
    ("es-ES", "female"): "es-ES-ElviraNeural", ("es-ES", "male"): "es-ES-AlvaroNeural",
    ("es-MX", "female"): "es-MX-DaliaNeural", ("es-MX", "male"): "es-MX-JorgeNeural",
}  # fmt: skip
_MALE_NAMES = frozenset(
    (
        "Alvaro", "Andrew", "AndrewMultilingual", "Brandon", "Brian", "BrianMultilingual", "Christopher", "Connor", "Conrad", "Davis", "Diego",
        "Eric", "FlorianMultilingual", "Guy", "Henri", "Jacob", "Jason", "Jorge", "Killian", "Liam", "Luke", "Mitchell", "Prabhat", "Roger",
        "Ryan", "Steffan", "Thomas", "Tony", "Wayne", "William",
    )
)  # fmt: skip


def setting(name: str, default: t.Any) -> t.Any:
    """From the environment, else from the application's settings, whichever release they are of."""
    if os.environ.get(name):
        return os.environ[name]
    try:
        from app.core import config

        read = getattr(config, "get_settings", None)
        return getattr(read() if read else config.settings, name, default)
    except Exception as error:  # settings that cannot be read must not silence the service
        logger.warning("TTS setting cannot be read", name=name, error=type(error).__name__)
        return default


def flag(name: str, default: bool) -> bool:
    value = setting(name, default)
    return value if isinstance(value, bool) else str(value).strip().lower() not in ("0", "false", "no", "off", "")


def edge_voice(voice: Voice, wanted: str = "") -> str:
    """The Edge voice of that name, else one of the same language and gender."""
    if EDGE_VOICE.fullmatch(wanted):
        return wanted
    gender = "male" if voice.gender.lower().startswith("m") else "female"
    for (language, sex), name in EDGE_VOICES.items():
        if sex == gender and language.lower() == voice.language.lower():
            return name
    for (language, sex), name in EDGE_VOICES.items():
        if sex == gender and language.split("-", maxsplit=1)[0] == voice.language.split("-", maxsplit=1)[0].lower():
            return name
    return EDGE_VOICES["en-US", gender]


def gender_of(edge_name: str) -> str:
    """The gender of an Edge voice, so that a fallback keeps it."""
    return "male" if edge_name.split("-")[-1].removesuffix("Neural") in _MALE_NAMES else "female"


def classify(error: BaseException) -> str:
    """The class of an engine's error, which decides how soon it is left alone. Works by name: no engine is imported."""
    if isinstance(error, SpeechError):
        return error.kind
    if isinstance(error, (asyncio.TimeoutError, TimeoutError)):
        return "timeout"
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, ImportError):
        return "missing"
    if names & {"ServerTimeoutError"}:
        return "timeout"
    if names & {"NoAudioReceived"}:
        return "no_audio"
    if names & {"UnexpectedResponse", "UnknownResponse", "ValueError", "JSONDecodeError"}:
        return "garbage"
    if names & {"ServerDisconnectedError", "ConnectionResetError", "WebSocketError", "ClientPayloadError"}:
        return "dropped"
    if names & {"ClientConnectorError", "ClientResponseError", "SkewAdjustmentError", "ConnectionRefusedError", "ClientHttpProxyError", "gaierror", "SSLError"}:
        return "refused"
    return "failed"


class EdgeEngine:
    """Microsoft Edge's voices over the network, MP3. Plain text only: the library escapes it, markup would be read aloud."""

    name = "edge"
    remote = True

    def __init__(self) -> None:
        self.module: t.Any = None

    def unavailable(self) -> str:
        """Why it cannot even be tried; empty if it can."""
        return "" if self.module or importlib.util.find_spec("edge_tts") else "the package edge-tts is not installed"

    def proxy(self) -> t.Optional[str]:
        """The proxy for the service; passed on by us, as the library's HTTP client ignores HTTPS_PROXY for web sockets."""
        chosen = setting("TTS_EDGE_PROXY", None)
        if chosen:
            return str(chosen)
        if urllib.request.proxy_bypass("speech.platform.bing.com"):
            return None
        known = urllib.request.getproxies()
        return known.get("wss") or known.get("https") or known.get("all")

    async def stream(self, text: str, voice: Voice, wanted: str) -> t.AsyncIterator[bytes]:
        if self.module is None:
            # 0.25 s of importing, which must not stop the event loop.
            self.module = await asyncio.to_thread(importlib.import_module, "edge_tts")
        spoken = self.module.Communicate(
            text, edge_voice(voice, wanted), rate=f"{round(100 * voice.speed) - 100:+d}%", volume=f"{round(100 * voice.volume) - 100:+d}%",
            pitch=f"{round(50 * voice.pitch) - 50:+d}Hz", proxy=self.proxy(),
        )  # fmt: skip
        async for item in spoken.stream():
            if item["type"] == "audio":
                yield item["data"]


class CoquiEngine:
    """Coqui's local models through the application's own engine class, if the ``TTS`` package is installed at all."""

    name = "coqui"
    remote = True

    def __init__(self) -> None:
        self.engine: t.Any = None

    def unavailable(self) -> str:
        return "" if self.engine or importlib.util.find_spec("TTS") else "the package TTS (Coqui) is not installed"

    async def stream(self, text: str, voice: Voice, wanted: str) -> t.AsyncIterator[bytes]:
        if self.engine is None:
            module = await asyncio.to_thread(importlib.import_module, "app.services.tts.coqui_tts_engine")
            kind = getattr(module, "CoquiTTS", None) or getattr(module, "CoquiTTSEngine", None)
            if kind is None:
                raise SpeechError("missing", "the application has no Coqui engine")
            engine = kind()
            if not await engine.initialize():
                raise SpeechError("missing", "Coqui has no model")
            self.engine = engine
        profile = VoiceProfile(wanted, wanted, voice.gender, "adult", "", voice.language, TTSEngine.COQUI)
        answer = await self.engine.synthesize(TTSRequest(text, profile, AudioFormat.WAV))
        if not answer.success or not answer.audio_data:
            raise SpeechError("no_audio", answer.error or "Coqui made no audio")
        yield wav_with_sizes(answer.audio_data)


class SystemEngine:
    """The machine's own engines; see ``fallback_tts``."""

    name = "system"
    remote = False

    def __init__(self) -> None:
        self.service = FallbackTTSService()

    def unavailable(self) -> str:
        return "" if self.service.programs or find_programs() else "no espeak-ng, espeak, pyttsx3, say or PowerShell on this machine"

    async def stream(self, text: str, voice: Voice, wanted: str) -> t.AsyncIterator[bytes]:
        if not self.service.programs:
            await self.service.initialize()
        yield (await self.service.speak(text, voice)).data


Engine = t.Union[EdgeEngine, CoquiEngine, SystemEngine]


@dataclass
class Breaker:
    """What is known of one engine. ``state``: closed, open, half_open. ``proven`` is when it last made audio (monotonic)."""

    name: str
    state: str = "closed"
    proven: t.Optional[float] = None
    row: t.Dict[str, int] = field(default_factory=dict)
    failures: t.Dict[str, int] = field(default_factory=dict)
    successes: int = 0
    last_error: str = ""
    first_audio: t.Deque[float] = field(default_factory=lambda: deque(maxlen=256))
    retry_at: float = 0.0
    pause: float = PROBE_FIRST

    def success(self, first_audio: t.Optional[float] = None) -> None:
        if self.state != "closed":
            logger.info("TTS engine is back", engine=self.name)
        self.state, self.pause, self.row, self.last_error = "closed", PROBE_FIRST, {}, ""
        self.proven, self.successes = time.monotonic(), self.successes + 1
        if first_audio is not None:
            self.first_audio.append(first_audio)

    def failure(self, kind: str, message: str) -> bool:
        """Counts a failure; whether the breaker is open now."""
        self.failures[kind] = self.failures.get(kind, 0) + 1
        self.row[kind] = self.row.get(kind, 0) + 1
        self.last_error = kind
        if self.state == "closed" and self.row[kind] < TOLERATED.get(kind, TOLERATED_OTHER):
            return False
        if self.state == "closed":
            say = logger.info if kind == "missing" else logger.warning
            say("TTS engine is left alone until it makes audio", engine=self.name, cause=kind, error=message[:200])
            self.pause = PROBE_SILENT if kind == "no_audio" else self.pause
        self.state = "open"
        return True

    def health(self) -> t.Dict[str, t.Any]:
        times = sorted(self.first_audio)
        return {
            "status": "unhealthy" if self.state != "closed" else "healthy" if self.proven is not None else "unproven",
            "breaker": self.state, "last_error": self.last_error, "successes": self.successes, "failures": dict(self.failures),
            "last_audio_age_seconds": None if self.proven is None else round(time.monotonic() - self.proven, 1),
            "retry_in_seconds": round(max(0.0, self.retry_at - time.monotonic()), 1) if self.state != "closed" else None,
            "first_audio_ms": {"p50": round(times[len(times) // 2], 1), "p95": round(times[int(len(times) * 0.95)], 1), "count": len(times)} if times else None,
        }  # fmt: skip


def observe(task: asyncio.Task[t.Any]) -> None:
    if not task.cancelled():
        task.exception()


ATTEMPTS: t.Set[Attempt] = set()


class Attempt:
    """One engine speaking one text, in a task of its own, judged by its budgets and reported to its breaker.

    The task that reads from the engine is cancelled without waiting for it: a library's goodbye to a dead peer may take
    ten seconds (the closing handshake of a web socket), which nobody should have to wait for.
    """

    def __init__(self, engine: Engine, breaker: Breaker, text: str, voice: Voice, wanted: str, *, first: float, gap: float, total: float) -> None:
        self.engine, self.breaker = engine, breaker
        self.chunks: t.List[bytes] = []
        self.error: t.Optional[SpeechError] = None
        self.done = False
        #: The first audio is all that is still of interest: whether the engine lives.
        self.only_judged = False
        self.started = self.moved = time.monotonic()
        self.first_at: t.Optional[float] = None
        self._signal = asyncio.Event()
        self._sounds = any(character.isalnum() for character in text)
        self._budgets = (first, gap, self.started + total)
        self._reader = asyncio.ensure_future(self._read(text, voice, wanted))
        self._judge = asyncio.ensure_future(self._watch())
        ATTEMPTS.add(self)  # the event loop itself keeps only weak references to tasks

    async def _read(self, text: str, voice: Voice, wanted: str) -> None:
        async for data in self.engine.stream(text, voice, wanted):
            if not self.chunks and container_of(data) is None:
                raise SpeechError("garbage", "the engine's answer is no audio")
            self.chunks.append(data)
            self.moved = time.monotonic()
            self.first_at = self.first_at or self.moved
            self._signal.set()
        if not self.chunks:
            raise SpeechError("no_audio", "the engine made no audio")

    async def _watch(self) -> None:
        first, gap, deadline = self._budgets
        error: t.Optional[BaseException] = None
        try:
            while True:
                end = min(deadline, self.moved + (gap if self.chunks else first))
                await asyncio.wait({self._reader}, timeout=max(0.0, end - time.monotonic()))
                if self._reader.done():
                    error = asyncio.CancelledError() if self._reader.cancelled() else self._reader.exception()
                    break
                if time.monotonic() >= min(deadline, self.moved + (gap if self.chunks else first)):
                    stage = "in the middle" if self.chunks else "before the first audio"
                    error = SpeechError("timeout", f"silent {stage} after {time.monotonic() - self.started:.1f} s")
                    break
                if self.chunks and self.only_judged:
                    break
        except asyncio.CancelledError as cancelled:
            error = cancelled
            raise
        finally:
            self._dispose()
            if error is None:
                self.breaker.success(1000 * ((self.first_at or self.moved) - self.started))
            elif not isinstance(error, asyncio.CancelledError):
                kind = classify(error)
                # A text that nobody can speak says nothing about the engine, nor does a crowd, nor silence where there was nothing to hear.
                if kind not in ("empty", "too_long", "busy") and (kind != "no_audio" or self._sounds):
                    self.breaker.failure(kind, str(error) or type(error).__name__)
            if error is not None:
                self.error = error if isinstance(error, SpeechError) else SpeechError(classify(error), f"{type(error).__name__}: {error}"[:300])
            self.done = True
            self._signal.set()
            ATTEMPTS.discard(self)

    def _dispose(self) -> None:
        if self._reader.done():
            return
        self._reader.add_done_callback(observe)
        self._reader.cancel()
        # The second time breaks off a farewell that waits for the peer.
        asyncio.get_running_loop().call_later(0.2, self._reader.cancel)

    async def progress(self, timeout: t.Optional[float]) -> None:
        """Waits until something new came, it ended, or ``timeout`` seconds are over."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._signal.wait(), timeout)
        self._signal.clear()
        if self.done:
            self._signal.set()

    def drop(self) -> None:
        """Nobody wants it any more; it says nothing about the engine."""
        if not self.done:
            self._judge.add_done_callback(observe)
            self._judge.cancel()

    def audio(self) -> Audio:
        """The complete audio; raises its error."""
        if self.error:
            raise self.error
        data = b"".join(self.chunks)
        kind = container_of(data) or AudioFormat.MP3
        if kind is AudioFormat.WAV:
            rate, duration = wav_facts(data)
        else:
            rate, duration = 24_000, int(len(data) * 8 / 48)  # the service's 48 kbit/s, constant
        return Audio(data, kind, rate, duration, self.engine.name)
