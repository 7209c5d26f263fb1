# SPDX-License-Identifier: MIT
"""Speech for PAM: Edge, then Coqui, then the machine's own engines, then text only.

- ``TTS_PRIMARY_ENGINE`` chooses where the chain begins (``edge``, ``coqui``; ``fallback`` or ``system`` for the
  machine's own engines only), ``TTS_FALLBACK_ENABLED=false`` ends it after its first engine.
- Every engine has budgets in time. An engine that is slow to begin is overtaken by the next one before any audio has
  been sent; two engines never speak inside one segment.
- A breaker per engine, by class of error, keeps users from waiting for what is known to be dead. Recovery is found by
  probes in the background, never by a user's request.
- Spoken texts are kept (``TTS_CACHE_ENABLED``, ``TTS_CACHE_TTL``), also on disk where ``TTS_CACHE_DIR`` is set.
- Only audio that was made makes an engine healthy. The status is read from what happened; asking for it costs nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib
import importlib.util
import os
import random
import re
import tempfile
import time
import typing as t
import urllib.request
from collections import OrderedDict, deque
from dataclasses import dataclass, field, replace
from pathlib import Path

from app.core.logging import get_logger

from .base_tts import (
    AudioChunk,
    AudioFormat,
    TTSEngine,
    TTSRequest,
    TTSResponse,
    VoiceProfile,
    VoiceSettings,
    VoiceStyle,
)
from .fallback_tts import (
    OF_THE_VOICE,
    STREAM_PIECE,
    Audio,
    FailingVoices,
    FallbackTTSService,
    LocalEngine,
    SpeechError,
    Voice,
    container_of,
    find_programs,
    locale_of,
    pieces,
    speakable,
    voice_of,
    wav_facts,
    wav_with_sizes,
)

try:
    env: t.Any = importlib.import_module("app.wheels_ops.env")
    memory_budget: t.Any = importlib.import_module("app.wheels_ops.memory_budget")
except ImportError:  # copied by hand without app/wheels_ops
    env = memory_budget = None

logger = get_logger(__name__)
if env is None:
    logger.warning("TTS: app/wheels_ops is not installed; variables that cannot be read are not reported")

#: Seconds until the first audio of a remote engine (``TTS_FIRST_AUDIO_SECONDS``), and without any after it (complete
#: and streamed answers).
FIRST_AUDIO, GAP_COMPLETE, GAP_STREAM = 1.2, 1.0, 2.0
#: Seconds of silence after which the next engine starts beside the first (``TTS_HEDGE_SECONDS``).
HEDGE = 0.4
#: A remote engine may take TOTAL seconds for a complete utterance, and PER_CHARACTER for each character over FREE; the
#: next engine has spoken by then, as it begins RESERVE seconds before. Nobody waits longer than ANSWER (for a complete
#: answer, or for the next sound of a stream; the same per character): then it is text.
TOTAL, RESERVE, ANSWER = 2.3, 0.8, 2.6
PER_CHARACTER, FREE = 0.01, 100
#: A user whose utterance came from a later engine keeps that voice for so long, instead of hearing two by turns.
STICKY = 60.0
#: Characters a streamed segment may have; it ends with a sentence.
SEGMENT = 1000
#: Seconds between probes of an open breaker while there are requests, so that recovery is seen within 20 s; doubled up
#: to PROBE_IDLE when nobody has asked for DEMAND seconds. A probe may wait PROBE_BUDGET for the first audio.
PROBE_BUSY, PROBE_IDLE, DEMAND, PROBE_BUDGET = 14.0, 600.0, 600.0, 2.5
PROBE_TEXT = "OK."
#: The user under whom ``GET /api/v1/tts/test`` asks. A test that is answered from the cache would prove nothing.
TEST_USER = "test"
_ENGINE_NAMES = {
    "edge": TTSEngine.EDGE,
    "coqui": TTSEngine.COQUI,
    "system": LocalEngine.SYSTEM,
    "text_only": LocalEngine.TEXT_ONLY,
}
#: Failures in a row that open the breaker: what is refused at once will be refused again, a time-out may be an
#: accident.
TOLERATED = {"refused": 1, "missing": 1, "timeout": 2}
TOLERATED_OTHER = 3
#: The first pause between two probes of an open breaker, in seconds.
PROBE_FIRST = 5.0
#: The same after silence: it may have been the texts ("..." has no sound, nor have letters that a voice does not know).
PROBE_SILENT = 1.0
EDGE_VOICE = re.compile(r"[a-z]{2,3}-[A-Z]{2}(-[A-Za-z]+)?-[A-Za-z]+Neural")
EDGE_VOICES = {
    ("en-US", "female"): "en-US-AriaNeural",
    ("en-US", "male"): "en-US-GuyNeural",
    ("en-GB", "female"): "en-GB-SoniaNeural",
    ("en-GB", "male"): "en-GB-RyanNeural",
    ("en-AU", "female"): "en-AU-NatashaNeural",
    ("en-AU", "male"): "en-AU-WilliamNeural",
    ("de-DE", "female"): "de-DE-KatjaNeural",
    ("de-DE", "male"): "de-DE-ConradNeural",
    ("fr-FR", "female"): "fr-FR-DeniseNeural",
    ("fr-FR", "male"): "fr-FR-HenriNeural",
    ("es-ES", "female"): "es-ES-ElviraNeural",
    ("es-ES", "male"): "es-ES-AlvaroNeural",
    ("es-MX", "female"): "es-MX-DaliaNeural",
    ("es-MX", "male"): "es-MX-JorgeNeural",
}
_MALE_NAMES = frozenset(
    (
        "Alvaro",
        "Andrew",
        "AndrewMultilingual",
        "Brandon",
        "Brian",
        "BrianMultilingual",
        "Christopher",
        "Connor",
        "Conrad",
        "Davis",
        "Diego",
        "Eric",
        "FlorianMultilingual",
        "Guy",
        "Henri",
        "Jacob",
        "Jason",
        "Jorge",
        "Killian",
        "Liam",
        "Luke",
        "Mitchell",
        "Prabhat",
        "Roger",
        "Ryan",
        "Steffan",
        "Thomas",
        "Tony",
        "Wayne",
        "William",
    )
)


# The engines, what is known of each, and one judged attempt at speaking -----------------------------------------------


def setting(name: str, default: t.Any) -> t.Any:
    """From the environment, else from the application's settings, whichever release they are of."""
    if env is not None:
        value = env.raw(name, settings=True)
        return default if value is None else value
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
    """A switch from the environment or the settings."""
    if env is not None:
        return env.flag(name, default, settings=True)
    value = setting(name, default)
    return value if isinstance(value, bool) else str(value).strip().lower() not in ("0", "false", "no", "off", "")


def number(name: str, default: float) -> float:
    """A number of at least 0 from the environment or the settings."""
    if env is not None:
        return env.number(name, default, settings=True)
    try:
        value = float(setting(name, default))
    except (TypeError, ValueError):
        return default
    return value if 0 <= value < float("inf") else default


def installed(package: str) -> bool:
    """Whether a package can be imported; imports nothing. One that somebody put into ``sys.modules`` by hand has no
    spec and is there."""
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:
        return True


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


def edge_voices(voice: Voice, wanted: str = "") -> t.List[str]:
    """The Edge voices to try, best first: the one asked for, the default of its language, English. Two at least."""
    first = edge_voice(voice, wanted)
    spoken = replace(voice, language="-".join(first.split("-")[:2])) if wanted == first else voice
    other = "female" if voice.gender.lower().startswith("m") else "male"
    language = spoken.language.split("-", maxsplit=1)[0].lower()
    tries = [first, edge_voice(spoken), edge_voice(replace(voice, language="en-US"))]
    if language == "en":
        tries.append(edge_voice(replace(spoken, gender=other)))
    return list(dict.fromkeys(tries))[:3]


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
    if names & {
        "ClientConnectorError",
        "ClientResponseError",
        "SkewAdjustmentError",
        "ConnectionRefusedError",
        "ClientHttpProxyError",
        "gaierror",
        "SSLError",
    }:
        return "refused"
    return "failed"


class EdgeEngine:
    """Microsoft Edge's voices over the network, MP3. Plain text only: the library escapes it, markup would be read
    aloud."""

    name = "edge"
    remote = True

    def __init__(self) -> None:
        self.module: t.Any = None
        self.failing = FailingVoices()

    def key(self, voice: Voice, wanted: str) -> str:
        """The voice that a failure counts against."""
        return edge_voice(voice, wanted)

    def unavailable(self) -> str:
        """Why it cannot even be tried; empty if it can."""
        return "" if self.module or installed("edge_tts") else "the package edge-tts is not installed"

    def proxy(self) -> t.Optional[str]:
        """The proxy for the service; passed on by us, as the library's HTTP client ignores HTTPS_PROXY for web
        sockets."""
        address = setting("TTS_EDGE_PROXY", None)
        if address:
            return str(address)
        if urllib.request.proxy_bypass("speech.platform.bing.com"):
            return None
        proxies = urllib.request.getproxies()
        return proxies.get("wss") or proxies.get("https") or proxies.get("all")

    async def stream(self, text: str, voice: Voice, wanted: str) -> t.AsyncIterator[bytes]:
        if self.module is None:
            # 0.25 s of importing, which must not stop the event loop.
            self.module = await asyncio.to_thread(importlib.import_module, "edge_tts")
        names = self.failing.order(edge_voices(voice, wanted))
        for number, name in enumerate(names):
            begun = False
            try:
                async for data in self._spoken(text, voice, name):
                    begun = True
                    yield data
                if not begun:
                    raise SpeechError("no_audio", "the engine made no audio")
            except Exception as error:  # whatever the library raises; ``classify`` knows it by name
                sounds = any(character.isalnum() for character in text)
                if begun or classify(error) not in OF_THE_VOICE or number + 1 == len(names) or not sounds:
                    raise
                self.failing.failed(name)
                logger.info("An Edge voice failed, another one speaks", voice=name, cause=classify(error))
            else:
                self.failing.spoke(name)
                return

    async def _spoken(self, text: str, voice: Voice, name: str) -> t.AsyncIterator[bytes]:
        spoken = self.module.Communicate(
            text,
            name,
            rate=f"{round(100 * voice.speed) - 100:+d}%",
            volume=f"{round(100 * voice.volume) - 100:+d}%",
            pitch=f"{round(50 * voice.pitch) - 50:+d}Hz",
            proxy=self.proxy(),
        )
        async for item in spoken.stream():
            if (
                item["type"] == "audio" and item["data"]
            ):  # one release of the library hands on messages without sound, too
                yield item["data"]


class CoquiEngine:
    """Coqui's local models through the application's own engine class, if the ``TTS`` package is installed at all."""

    name = "coqui"
    remote = True

    def __init__(self) -> None:
        self.engine: t.Any = None

    def key(self, voice: Voice, wanted: str) -> str:
        return f"{wanted} {locale_of(voice)}"

    def unavailable(self) -> str:
        return "" if self.engine or installed("TTS") else "the package TTS (Coqui) is not installed"

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

    def key(self, voice: Voice, wanted: str) -> str:
        return f"{locale_of(voice)} {voice.gender}"

    def unavailable(self) -> str:
        return (
            ""
            if self.service.programs or find_programs()
            else "no espeak-ng, espeak, pyttsx3, say or PowerShell on this machine"
        )

    async def stream(self, text: str, voice: Voice, wanted: str) -> t.AsyncIterator[bytes]:
        if not self.service.programs:
            await self.service.initialize()
        yield (await self.service.speak(text, voice)).data


Engine = t.Union[EdgeEngine, CoquiEngine, SystemEngine]


@dataclass
class Breaker:
    """What is known of one engine. ``state``: closed, open, half_open. ``proven`` is when it last made audio
    (monotonic)."""

    name: str
    state: str = "closed"
    proven: t.Optional[float] = None
    row: t.Dict[str, int] = field(default_factory=dict)
    #: The voices of the failures in ``row``, and whether they were too many of one voice: then a probe decides.
    voices: t.Set[str] = field(default_factory=set)
    doubtful: bool = False
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
        self.voices, self.doubtful = set(), False
        self.proven, self.successes = time.monotonic(), self.successes + 1
        if first_audio is not None:
            self.first_audio.append(first_audio)

    def failure(self, kind: str, message: str, voice: str = "") -> bool:
        """Counts a failure; whether the breaker is open now. ``voice``: the one that failed, empty for the voice of the
        probe. Failures of a single other voice open nothing: they make the engine doubtful until its next probe."""
        self.failures[kind] = self.failures.get(kind, 0) + 1
        self.row[kind] = self.row.get(kind, 0) + 1
        self.last_error = kind
        self.voices.add(voice)
        if self.state == "closed":
            decided = self.doubtful and not voice
            if not decided and self.row[kind] < TOLERATED.get(kind, TOLERATED_OTHER):
                return False
            if voice and len(self.voices) < 2 and TOLERATED.get(kind, TOLERATED_OTHER) > 1:
                self.doubtful = True
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
            "breaker": self.state,
            "last_error": self.last_error,
            "successes": self.successes,
            "failures": dict(self.failures),
            "last_audio_age_seconds": None if self.proven is None else round(time.monotonic() - self.proven, 1),
            "retry_in_seconds": (
                round(max(0.0, self.retry_at - time.monotonic()), 1) if self.state != "closed" else None
            ),
            "first_audio_ms": (
                {
                    "p50": round(times[len(times) // 2], 1),
                    "p95": round(times[int(len(times) * 0.95)], 1),
                    "count": len(times),
                }
                if times
                else None
            ),
        }


def observe(task: asyncio.Task[t.Any]) -> None:
    if not task.cancelled():
        task.exception()


ATTEMPTS: t.Set[Attempt] = set()


class Attempt:
    """One engine speaking one text, in a task of its own, judged by its budgets and reported to its breaker.

    The task that reads from the engine is cancelled without waiting for it: a library's goodbye to a dead peer may take
    ten seconds (the closing handshake of a web socket), which nobody should have to wait for.
    """

    def __init__(
        self,
        engine: Engine,
        breaker: Breaker,
        text: str,
        voice: Voice,
        wanted: str,
        *,
        first: float,
        gap: float,
        total: float,
    ) -> None:
        self.engine, self.breaker = engine, breaker
        key = engine.key(voice, wanted)
        self.voice = "" if key == engine.key(Voice(), "") else key
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
        self._reader.add_done_callback(
            observe
        )  # an error that comes together with a cancellation is nobody's to retrieve
        self._judge = asyncio.ensure_future(self._watch())
        self._judge.add_done_callback(self._ended)
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
                # A text that nobody can speak says nothing about the engine, nor does a crowd, nor silence where there
                # was nothing to hear.
                if kind not in ("empty", "too_long", "busy") and (kind != "no_audio" or self._sounds):
                    self.breaker.failure(kind, str(error) or type(error).__name__, self.voice)
            if error is not None:
                self.error = (
                    error
                    if isinstance(error, SpeechError)
                    else SpeechError(classify(error), f"{type(error).__name__}: {error}"[:300])
                )
            self.done = True
            self._signal.set()

    def _ended(self, judge: asyncio.Task[None]) -> None:
        observe(judge)
        ATTEMPTS.discard(self)
        if not self.done:  # cancelled before its first step: none of its own code has run
            self.done = True
            self._signal.set()
            self._reader.cancel()

    def _dispose(self) -> None:
        if self._reader.done():
            return
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
        if not self.done and not self._judge.get_loop().is_closed():
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


# What has been spoken before ------------------------------------------------------------------------------------------

CACHE_BYTES, CACHE_DISK_BYTES = 32 * 1024 * 1024, 256 * 1024 * 1024


class Cache:
    """Spoken texts, least recently used first out: 32 MB of memory and, where ``TTS_CACHE_DIR`` is set, 256 MB of disk.

    The disk is not used unless asked for, as what PAM says to a user may be private. Files are readable by the service
    only.
    """

    def __init__(self) -> None:
        self.entries: OrderedDict[str, t.Tuple[float, Audio]] = OrderedDict()
        #: What counts our bytes together with those of others.
        self.budget: t.Any = memory_budget.budget if memory_budget is not None else None
        self.bytes = self.hits = self.misses = 0
        self.enabled, self.lifetime = True, 3600.0
        self.directory: t.Optional[Path] = None

    def configure(self) -> None:
        if memory_budget is not None:
            limit = env.number(memory_budget.VARIABLE, memory_budget.DEFAULT_MB, low=1.0)
            self.budget.limit = int(limit * (1 << 20))
            self.budget.register("spoken texts", memory_budget.SPEECH, self.shrink)
        self.enabled = flag("TTS_CACHE_ENABLED", True)
        self.lifetime = max(1.0, number("TTS_CACHE_TTL", self.lifetime))
        path = os.environ.get("TTS_CACHE_DIR")
        self.directory = None
        if path:
            try:
                Path(path).mkdir(mode=0o700, parents=True, exist_ok=True)
                if os.stat(path).st_uid == os.geteuid():
                    self.directory = Path(path)
            except OSError as error:
                logger.warning("TTS cache directory cannot be used", error=str(error))

    @staticmethod
    def key(engine: str, voice: Voice, wanted: str, text: str) -> str:
        return hashlib.sha256(repr((engine, voice, wanted, text)).encode("utf-8", "replace")).hexdigest()

    def get(self, key: str) -> t.Optional[Audio]:
        entry = self.entries.get(key)
        if entry is None:
            return None
        if time.time() - entry[0] > self.lifetime:
            self._drop(key)
            return None
        self.entries.move_to_end(key)
        return entry[1]

    def put(self, key: str, audio: Audio, made: t.Optional[float] = None) -> None:
        if not self.enabled or len(audio.data) > CACHE_BYTES // 4:
            return
        self._drop(key)
        self.entries[key] = (time.time() if made is None else made, audio)
        self._count(len(audio.data))
        while self.bytes > CACHE_BYTES:
            self._drop(next(iter(self.entries)))

    def _drop(self, key: str) -> int:
        entry = self.entries.pop(key, None)
        if entry is None:
            return 0
        self._count(-len(entry[1].data))
        return len(entry[1].data)

    def _count(self, size: int) -> None:
        self.bytes += size
        if self.budget is not None:
            self.budget.change(size)

    def shrink(self, size: t.Optional[int] = None) -> int:
        """Gives back so many bytes (all: None), what was not heard for longest first; the number of bytes."""
        freed = 0
        while self.entries and (size is None or freed < size):
            freed += self._drop(next(iter(self.entries)))
        return freed

    def clear(self, older_than_seconds: float = 0.0) -> int:
        """Forgets what is older; the number of entries, in memory and on disk."""
        limit = time.time() - older_than_seconds
        old = [key for key, (made, _ignored) in self.entries.items() if made <= limit]
        for key in old:
            self._drop(key)
        names = set(old)
        for path in self._files():
            with contextlib.suppress(OSError):
                if path.stat().st_mtime <= limit:
                    path.unlink()
                    names.add(path.stem)
        return len(names)

    def _files(self) -> t.List[Path]:
        with contextlib.suppress(OSError):
            return (
                [path for path in self.directory.iterdir() if re.fullmatch(r"[0-9a-f]{64}\.(mp3|wav)", path.name)]
                if self.directory
                else []
            )
        return []

    def load(self, key: str, engine: str) -> t.Optional[Audio]:
        """From the disk; blocks, so it runs in a thread."""
        for kind in (AudioFormat.MP3, AudioFormat.WAV):
            path = self.directory / f"{key}.{kind.value}" if self.directory else None
            with contextlib.suppress(OSError, SpeechError):
                if path is None or time.time() - path.stat().st_mtime > self.lifetime:
                    continue
                data = path.read_bytes()
                if container_of(data) is kind:
                    rate, duration = wav_facts(data) if kind is AudioFormat.WAV else (24_000, int(len(data) * 8 / 48))
                    return Audio(data, kind, rate, duration, engine)
        return None

    def save(self, key: str, audio: Audio) -> None:
        """To the disk, all or nothing, within its bound; blocks, so it runs in a thread."""
        if self.directory is None:
            return
        temporary = ""
        try:
            handle, temporary = tempfile.mkstemp(dir=self.directory, prefix=".new-")
            with os.fdopen(handle, "wb") as file:
                file.write(audio.data)
            os.replace(temporary, self.directory / f"{key}.{audio.format.value}")
            files = sorted(((path.stat().st_mtime, path.stat().st_size, path) for path in self._files()), reverse=True)
            used = 0
            for _ignored, size, path in files:
                used += size
                if used > CACHE_DISK_BYTES:
                    path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("TTS cache cannot be written", error=str(error))
            if temporary:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)

    def stats(self) -> t.Dict[str, t.Any]:
        asked = self.hits + self.misses
        return {
            "entries": len(self.entries),
            "bytes": self.bytes,
            "max_bytes": CACHE_BYTES,
            "hits": self.hits,
            "misses": self.misses,
            "hit_rate_percent": round(100 * self.hits / asked, 1) if asked else 0.0,
            "disk": str(self.directory or ""),
        }


# The service ----------------------------------------------------------------------------------------------------------


def _seconds(name: str, default: float) -> float:
    """A time from the environment or the settings, within a tenth and a minute."""
    return min(60.0, max(0.1, number(name, default)))


def segments(text: str, limit: int = SEGMENT) -> t.List[str]:
    """The text in parts of at most ``limit`` characters that end with a sentence, or with a word if one is too long."""
    parts: t.List[str] = []
    rest = text.strip()
    while len(rest) > limit:
        ends = [match.end() for match in re.finditer(r"[.!?…。！？]+[\"')\]]*\s+|\n+", rest[:limit])]
        cut = ends[-1] if ends else rest.rfind(" ", 1, limit)
        cut = cut if cut > 0 else limit
        parts.append(rest[:cut].strip())
        rest = rest[cut:].strip()
    return [part for part in (*parts, rest) if part]


class TTSService:
    """What PAM asks for speech. ``is_initialized`` is True once the chain is known; no engine is waited for."""

    def __init__(self) -> None:
        self.is_initialized = False
        self.cache = Cache()
        self.engines: t.Dict[str, Engine] = {}
        self.breakers: t.Dict[str, Breaker] = {}
        self.chain: t.List[str] = []
        self.fallbacks: t.Dict[str, int] = {}
        self._streaming: t.Any = None
        self._streaming_tried = False
        self._background: t.Set[asyncio.Task[t.Any]] = set()
        self._probes: t.Dict[str, asyncio.Task[None]] = {}
        self._wake: t.Dict[str, asyncio.Event] = {}
        self._flights: t.Dict[t.Tuple[t.Any, ...], asyncio.Task[Audio]] = {}
        self._sticky: OrderedDict[str, t.Tuple[float, str]] = OrderedDict()
        self._voices: OrderedDict[t.Tuple[str, str], VoiceProfile] = OrderedDict()
        self._ratings: t.Deque[t.Dict[str, t.Any]] = deque(maxlen=1000)
        self._requests = self._spoken = 0
        self._generation_ms: t.Deque[float] = deque(maxlen=1000)
        self._usage: t.Dict[str, int] = {}
        self._last_request = float("-inf")
        self.hedge, self.first_audio = HEDGE, FIRST_AUDIO

    @property
    def streaming_service(self) -> t.Any:
        """The application's own streaming service, or None: in one release it cannot be imported (it names a class that
        is gone)."""
        if not self._streaming_tried:
            self._streaming_tried = True
            try:
                self._streaming = importlib.import_module(f"{__package__}.streaming_tts").streaming_tts_service
            except Exception as error:  # an ImportError in one release, anything in its chain of imports in another
                logger.info("Streaming TTS is not used", cause=f"{type(error).__name__}: {error}")
        return self._streaming

    # Start and stop

    async def initialize(self) -> bool:
        """Builds the chain and proves its engines in the background. False only where ``TTS_ENABLED`` is false."""
        if not flag("TTS_ENABLED", True):
            self.is_initialized = False
            logger.info("TTS is switched off (TTS_ENABLED)")
            return False
        primary = str(setting("TTS_PRIMARY_ENGINE", "edge")).strip().lower()
        order = {"edge": ["edge", "coqui", "system"], "coqui": ["coqui", "edge", "system"]}.get(primary)
        if order is None:
            if primary not in ("fallback", "system", "espeak", "espeak-ng", "pyttsx3"):
                logger.warning("TTS_PRIMARY_ENGINE is not known here, the machine's own engines speak", value=primary)
            order = ["system"]
        if not flag("TTS_FALLBACK_ENABLED", True):
            order = order[:1]
        for name, kind in (("edge", EdgeEngine), ("coqui", CoquiEngine), ("system", SystemEngine)):
            self.engines.setdefault(name, kind())
            self.breakers.setdefault(name, Breaker(name))
        self.chain = order
        self.hedge, self.first_audio = (
            _seconds("TTS_HEDGE_SECONDS", HEDGE),
            _seconds("TTS_FIRST_AUDIO_SECONDS", FIRST_AUDIO),
        )
        self.cache.configure()
        self.is_initialized = True
        for name in order:
            self._probe_soon(name)
            if self.breakers[name].state != "closed":
                self._wake[name].set()  # somebody pressed the button: not after the next pause
        logger.info("TTS service initialized", chain=[*order, "text_only"])
        return True

    async def shutdown(self) -> None:
        self.is_initialized = False
        # Those of an event loop that has ended before, as that of a test, can neither be cancelled nor waited for.
        here = asyncio.get_running_loop()
        tasks = [
            task
            for task in (*self._probes.values(), *self._background, *self._flights.values())
            if task.get_loop() is here
        ]
        for attempt in list(ATTEMPTS):
            attempt.drop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._probes.clear()
        self._background.clear()
        self._flights.clear()
        if self._streaming is not None and getattr(self._streaming, "is_initialized", False):
            with contextlib.suppress(Exception):
                await self._streaming.shutdown()

    # Probes

    def _probe_soon(self, name: str) -> None:
        """Starts the engine's probe loop on this event loop, unless it runs already."""
        task = self._probes.get(name)
        if task is not None and not task.done() and task.get_loop() is asyncio.get_running_loop():
            return
        self._wake[name] = asyncio.Event()
        task = asyncio.get_running_loop().create_task(self._probe(name), name=f"tts-probe-{name}")
        self._probes[name] = task
        task.add_done_callback(observe)

    async def _probe(self, name: str) -> None:
        """Asks an engine for audio: at once where nothing is known of it, then while its breaker is open, with
        pauses."""
        engine, breaker = self.engines[name], self.breakers[name]
        while True:
            if breaker.state != "closed":
                wanted = time.monotonic() - self._last_request < DEMAND
                pause = min(breaker.pause, PROBE_BUSY if wanted else PROBE_IDLE) * random.uniform(0.9, 1.1)
                breaker.pause = min(2 * breaker.pause, PROBE_IDLE)
                breaker.retry_at = time.monotonic() + pause
                # Not wait_for: up to Python 3.11 it can swallow a cancellation that comes together with the event, and
                # we would go on.
                woken = asyncio.ensure_future(self._wake[name].wait())
                try:
                    await asyncio.wait({woken}, timeout=pause)
                finally:
                    woken.cancel()
                self._wake[name].clear()
            why = engine.unavailable()
            if why:
                breaker.failure("missing", why)
                continue
            if breaker.state == "open":
                breaker.state = "half_open"
            attempt = Attempt(
                engine, breaker, PROBE_TEXT, Voice(), "", first=PROBE_BUDGET, gap=GAP_STREAM, total=2 * PROBE_BUDGET
            )
            try:
                while not attempt.done:
                    await attempt.progress(None)
            finally:
                attempt.drop()
                if breaker.state == "half_open":
                    breaker.state = "open"
            if breaker.state == "closed":
                return  # it spoke, or one failure is tolerated: then a request is the next to find out

    def _demand(self) -> None:
        """Somebody wants speech: probes that slept long because nobody did come earlier. The request does not wait for
        them."""
        now = time.monotonic()
        idle, self._last_request = now - self._last_request > DEMAND, now
        for name in self.chain:
            breaker = self.breakers[name]
            if breaker.state == "closed":
                continue
            self._probe_soon(name)
            if idle and breaker.retry_at - now > PROBE_BUSY:
                breaker.pause = PROBE_FIRST
                self._wake[name].set()

    # Speaking

    def _order(self, user_id: t.Optional[str]) -> t.List[str]:
        """The engines that may speak now, best first; for a user who just got a fallback, from that one on."""
        chain = self.chain
        if user_id and user_id in self._sticky:
            until, name = self._sticky[user_id]
            if time.monotonic() < until and name in chain:
                chain = chain[chain.index(name) :]
            else:
                self._sticky.pop(user_id, None)
        return [name for name in chain if self.breakers[name].state == "closed"]

    def _spoke(self, audio_engine: str, user_id: t.Optional[str], order: t.Sequence[str]) -> None:
        name = audio_engine if audio_engine in self.engines else "system"
        self._usage[name] = self._usage.get(name, 0) + 1
        if order and name != order[0] and user_id and user_id != TEST_USER:
            self._sticky[user_id] = (time.monotonic() + STICKY, name)
            self._sticky.move_to_end(user_id)
            while len(self._sticky) > 1024:
                self._sticky.popitem(last=False)

    def _allowed(self, seconds: float, text: str) -> float:
        """TOTAL or ANSWER for this text; who lets a remote engine begin later waits that much longer."""
        return seconds - FIRST_AUDIO + self.first_audio + PER_CHARACTER * max(0, len(text) - FREE)

    def _attempt(self, name: str, text: str, voice: Voice, wanted: str, *, gap: float) -> Attempt:
        remote = self.engines[name].remote
        # The machine's own engine bounds itself by the length of the text.
        total = self._allowed(TOTAL, text) if remote and gap == GAP_COMPLETE else 600.0
        return Attempt(
            self.engines[name],
            self.breakers[name],
            text,
            voice,
            wanted,
            first=self.first_audio if remote else 60.0,
            gap=gap,
            total=total,
        )

    def _fell(self, name: str, cause: str) -> None:
        key = f"{name}:{cause}"
        self.fallbacks[key] = self.fallbacks.get(key, 0) + 1
        if self.breakers[name].state != "closed" or self.breakers[name].doubtful:
            self._probe_soon(name)

    async def _complete(self, text: str, voice: Voice, wanted: str, order: t.Sequence[str]) -> Audio:
        """Complete audio of the first engine that makes some in time. Raises ``SpeechError`` when none does."""
        if not order:
            raise SpeechError("missing", "no speech engine works at the moment")
        name, rest = order[0], order[1:]
        attempt = self._attempt(name, text, voice, wanted, gap=GAP_COMPLETE)
        backup_at = attempt.started + self._allowed(TOTAL, text) - RESERVE
        backup: t.Optional[asyncio.Task[Audio]] = None
        try:
            while not attempt.done:
                pause = min(attempt.moved + self.hedge, backup_at) - time.monotonic()
                if backup is None and rest and pause <= 0:
                    backup = asyncio.ensure_future(self._complete(text, voice, wanted, rest))
                if backup is not None and not attempt.chunks:
                    moved = asyncio.ensure_future(attempt.progress(None))
                    try:
                        await asyncio.wait({moved, backup}, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        moved.cancel()
                    if backup.done() and not attempt.chunks and not attempt.done:
                        if backup.exception() is None:
                            attempt.only_judged = True
                            self._fell(name, "slow")
                            return backup.result()
                        rest, backup = (), None
                    continue
                await attempt.progress(max(0.01, pause) if rest and backup is None else None)
            try:
                return attempt.audio()
            except SpeechError as error:
                self._fell(name, error.kind)
                logger.warning("TTS engine failed, the next one speaks", engine=name, cause=error.kind)
                if backup is None and not rest:
                    raise
                return await (backup if backup is not None else self._complete(text, voice, wanted, rest))
        finally:
            if not attempt.only_judged:
                attempt.drop()
            if backup is not None and not backup.done():
                backup.add_done_callback(observe)
                backup.cancel()

    async def _first_speaker(
        self, text: str, voice: Voice, wanted: str, order: t.Sequence[str], until: float
    ) -> Attempt:
        """The attempt that has audio first; the others are dropped before anything is sent. ``until`` (monotonic) at
        the latest."""
        if not order:
            raise SpeechError("missing", "no speech engine works at the moment")
        running: t.List[t.Tuple[str, Attempt]] = []
        waiting = list(order)
        last = SpeechError("missing", "no speech engine works at the moment")
        winner: t.Optional[Attempt] = None
        late = False
        try:
            while winner is None:
                now = time.monotonic()
                if not running and not waiting:
                    raise last
                if now >= until:
                    late = True
                    raise SpeechError("timeout", "no speech engine made audio in time")
                newest = running[-1][1].started if running else float("-inf")
                if waiting and (not running or now - newest >= self.hedge):
                    name = waiting.pop(0)
                    running.append((name, self._attempt(name, text, voice, wanted, gap=GAP_STREAM)))
                    continue
                moves = [asyncio.ensure_future(attempt.progress(None)) for _ignored, attempt in running]
                pause = max(0.01, min(newest + self.hedge if waiting else until, until) - now)
                try:
                    await asyncio.wait(moves, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for move in moves:
                        move.cancel()
                for name, attempt in list(running):
                    if attempt.chunks and not attempt.error:
                        winner = winner or attempt
                    elif attempt.done:
                        running.remove((name, attempt))
                        last = attempt.error or last
                        self._fell(name, last.kind)
            return winner
        finally:
            for name, attempt in running:
                if attempt is winner:
                    continue
                if winner is None and not late:
                    attempt.drop()
                else:
                    attempt.only_judged = True
                    self._fell(name, "slow")

    def _cached(self, text: str, voice: Voice, wanted: str, order: t.Sequence[str]) -> t.Optional[Audio]:
        """What the engine that would speak now, or a better one, has said before."""
        best = self.chain.index(order[0]) if order else len(self.chain) - 1
        for name in self.chain[: best + 1]:
            audio = self.cache.get(Cache.key(name, voice, wanted, text))
            if audio is not None:
                return audio
        return None

    def _remember(self, text: str, voice: Voice, wanted: str, audio: Audio) -> None:
        key = Cache.key(audio.engine if audio.engine in self.engines else "system", voice, wanted, text)
        self.cache.put(key, audio)
        if self.cache.directory is not None and self.cache.enabled:
            self._spawn(asyncio.to_thread(self.cache.save, key, audio))

    def _spawn(self, work: t.Coroutine[t.Any, t.Any, t.Any]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        task.add_done_callback(observe)

    async def _flight(self, text: str, voice: Voice, wanted: str, order: t.Sequence[str], *, fresh: bool) -> Audio:
        """One synthesis for all who want the same at the same time; it goes on when one of them leaves."""
        if fresh:
            return await self._complete(text, voice, wanted, order)
        key = (text, voice, wanted, tuple(order), id(asyncio.get_running_loop()))
        task = self._flights.get(key)
        if task is None or task.done():

            async def fly() -> Audio:
                try:
                    if self.cache.directory is not None and order:
                        name = order[0]
                        kept = await asyncio.to_thread(self.cache.load, Cache.key(name, voice, wanted, text), name)
                        if kept is not None:
                            self.cache.put(Cache.key(name, voice, wanted, text), kept)
                            return kept
                    audio = await self._complete(text, voice, wanted, order)
                    self._remember(text, voice, wanted, audio)
                    return audio
                finally:
                    self._flights.pop(key, None)

            task = asyncio.ensure_future(fly())
            task.add_done_callback(observe)
            self._flights[key] = task
        return await asyncio.shield(task)

    async def _in_time(self, work: t.Coroutine[t.Any, t.Any, Audio], limit: float) -> Audio:
        """What ``work`` gives within ``limit`` seconds. Later it goes on without the caller, so that its engines are
        judged to their end."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task}, timeout=limit)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if task.done():
            return task.result()
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        task.add_done_callback(observe)
        raise SpeechError("timeout", "no speech engine made audio in time")

    def _voice(self, preference: t.Any, user_id: t.Optional[str], context: str) -> VoiceProfile:
        """The wished voice, else the user's, else the default (``TTS_VOICE_DEFAULT``)."""
        if isinstance(preference, VoiceProfile):
            return preference
        if isinstance(preference, dict):
            return self._profile(preference)
        if isinstance(preference, str) and preference:
            return self._profile({"voice_id": preference})
        if user_id:
            for where in (context, ""):
                if (user_id, where) in self._voices:
                    return self._voices[user_id, where]
        return self._profile({"voice_id": str(setting("TTS_VOICE_DEFAULT", "en-US-AriaNeural"))})

    def _profile(self, data: t.Mapping[str, t.Any]) -> VoiceProfile:
        name = str(data.get("voice_id") or data.get("name") or "")
        edge = bool(EDGE_VOICE.fullmatch(name))
        values = data.get("settings") if isinstance(data.get("settings"), dict) else {}
        settings = VoiceSettings()
        for key in ("stability", "similarity_boost", "speed", "pitch", "volume"):
            with contextlib.suppress(TypeError, ValueError):
                setattr(
                    settings, key, min(2.0, max(0.25, float(t.cast(t.Any, values).get(key, getattr(settings, key)))))
                )
        try:
            engine = TTSEngine(data.get("engine") or "edge")
        except ValueError:
            engine = TTSEngine.EDGE
        gender = str(
            data.get("gender") or (gender_of(name) if edge else "male" if name.endswith("-male") else "female")
        )
        language = str(data.get("language") or ("-".join(name.split("-")[:2]) if edge else "en-US"))
        return VoiceProfile(
            name,
            str(data.get("name") or name),
            gender,
            str(data.get("age") or "adult"),
            str(data.get("accent") or ""),
            language,
            engine,
            settings,
        )

    async def synthesize_for_pam(
        self,
        text: str,
        user_id: t.Optional[str] = None,
        context: str = "general_conversation",
        voice_preference: t.Any = None,
        stream: bool = False,
    ) -> t.Any:
        """A ``TTSResponse``; with ``stream`` an asynchronous generator of ``AudioChunk``; None while not initialized.

        The format of the audio is the one in ``response.request`` and ``chunk.format``. Where nothing can speak, the
        response has ``success=True``, no audio, ``engine_used`` ``text_only`` and ``degraded``; where the text itself
        cannot be spoken (empty, too long), or fallbacks are switched off, ``success`` is False.
        """
        if not self.is_initialized:
            return None
        profile = self._voice(voice_preference, user_id, context)
        voice = voice_of(profile)
        wanted = profile.voice_id if EDGE_VOICE.fullmatch(profile.voice_id) else ""
        request = TTSRequest(text, profile, AudioFormat.WAV, stream=stream, user_id=user_id)
        self._demand()
        if stream:
            return self._stream(request, voice, wanted)
        started = time.monotonic()
        self._requests += 1
        fresh = user_id == TEST_USER or not self.cache.enabled
        try:
            clean = speakable(text)
            order = self._order(user_id)
            audio = None if fresh else self._cached(clean, voice, wanted, order)
            hit = audio is not None
            self.cache.hits, self.cache.misses = self.cache.hits + hit, self.cache.misses + (not hit)
            if audio is None:
                limit = max(0.05, started + self._allowed(ANSWER, clean) - time.monotonic())
                audio = await self._in_time(self._flight(clean, voice, wanted, order, fresh=fresh), limit)
        except SpeechError as error:
            return self._without_audio(request, error, started)
        took = 1000 * (time.monotonic() - started)
        self._spoken += 1
        if not hit:
            self._generation_ms.append(took)
            self._spoke(audio.engine, user_id, self.chain)
        return self._answer(request, audio, took, hit)

    def _answer(self, request: TTSRequest, audio: Audio, took: float, hit: bool) -> TTSResponse:
        request.format, request.sample_rate = audio.format, audio.sample_rate
        used = _ENGINE_NAMES.get(audio.engine, LocalEngine.SYSTEM)
        answer = TTSResponse(
            request=request,
            audio_data=audio.data,
            duration_ms=audio.duration_ms,
            generation_time_ms=int(took),
            cache_hit=hit,
            engine_used=t.cast(TTSEngine, used),
        )
        answer.__dict__.update(
            degraded=bool(self.chain) and used is not _ENGINE_NAMES[self.chain[0]],
            mime_type=f"audio/{'mpeg' if audio.format is AudioFormat.MP3 else audio.format.value}",
        )
        return answer

    def _without_audio(self, request: TTSRequest, error: SpeechError, started: float) -> TTSResponse:
        """Explicit text in place of audio, or an error where text is no answer either."""
        honest = error.kind not in ("empty", "too_long") and flag("TTS_FALLBACK_ENABLED", True)
        self._usage["text_only"] = self._usage.get("text_only", 0) + honest
        answer = TTSResponse(
            request=request,
            success=honest,
            error=f"Audio is not available: {error}",
            generation_time_ms=int(1000 * (time.monotonic() - started)),
            engine_used=t.cast(TTSEngine, LocalEngine.TEXT_ONLY) if honest else None,
        )
        answer.__dict__.update(degraded=True, text_response=request.text, mime_type="text/plain")
        return answer

    async def _stream(self, request: TTSRequest, voice: Voice, wanted: str) -> t.AsyncGenerator[AudioChunk, None]:
        """Chunks as they come. Ends with an empty chunk, ``is_final``, whose metadata names the engine or the error.

        A segment whose engine stops in the middle is spoken again, whole, by the next engine: as a new segment with its
        own header (metadata ``segment`` and ``restarted``), never as a continuation in another voice and format.
        """
        index, number, engine, format_, rate = 0, 0, "text_only", AudioFormat.WAV, 22_050
        problem: t.Optional[SpeechError] = None
        started = heard = time.monotonic()
        self._requests += 1
        try:
            parts = segments(speakable(request.text))
        except SpeechError as error:
            parts, problem = [], error
        engine_from = ""
        while parts:
            order = self._order(request.user_id)
            if engine_from in order:  # one voice for the whole utterance
                order = order[order.index(engine_from) :]
            # The machine's own engine is fast enough for everything in one file with one header.
            part, parts = (" ".join(parts), []) if order[:1] == ["system"] else (parts[0], parts[1:])
            restarted = False
            known = (
                None
                if request.user_id == TEST_USER or not self.cache.enabled
                else self._cached(part, voice, wanted, order)
            )
            if known is not None:
                self.cache.hits += 1
                for chunk in pieces(
                    known, first_index=index, final=False, metadata={"segment": number, "cached": True}
                ):
                    index, engine, format_, rate = index + 1, known.engine, known.format, known.sample_rate
                    yield chunk
                    heard = time.monotonic()
                number, engine_from = number + 1, known.engine if known.engine in self.engines else "system"
                continue
            while True:
                problem = None
                try:
                    attempt = await self._first_speaker(part, voice, wanted, order, heard + self._allowed(ANSWER, ""))
                except SpeechError as error:
                    problem = error
                    break
                sent = 0
                try:
                    while True:
                        while sent < len(attempt.chunks):
                            data = attempt.chunks[sent]
                            if not sent:
                                format_ = container_of(data) or AudioFormat.MP3
                                rate = wav_facts(data)[0] if format_ is AudioFormat.WAV else 24_000
                                engine = attempt.engine.name
                                self._generation_ms.append(1000 * (time.monotonic() - started))
                            sent += 1
                            for start in range(0, len(data), STREAM_PIECE):
                                index += 1
                                piece = data[start : start + STREAM_PIECE]
                                yield AudioChunk(
                                    piece,
                                    rate,
                                    format_,
                                    index - 1,
                                    False,
                                    {"engine": engine, "segment": number, "restarted": restarted},
                                )
                                heard = time.monotonic()
                        if attempt.done:
                            break
                        await attempt.progress(None)
                finally:
                    attempt.drop()
                number, engine_from = number + 1, engine
                if attempt.error is None:
                    self._remember(part, voice, wanted, attempt.audio())
                    self._spoke(engine, request.user_id, self.chain)
                    break
                problem, restarted = attempt.error, True
                self._fell(engine, attempt.error.kind)
                order = [name for name in order[order.index(engine) + 1 :] if self.breakers[name].state == "closed"]
            if problem is not None:
                break
        self._spoken += problem is None
        if problem is not None:
            self._usage["text_only"] = self._usage.get("text_only", 0) + 1
        facts: t.Dict[str, t.Any] = {"engine": engine if index else "text_only"}
        if problem is not None:
            facts.update(error=f"Audio is not available: {problem}", text_response=request.text)
        yield AudioChunk(b"", rate, format_, index, True, facts)

    # Voices, ratings, status

    async def get_available_voices(self, user_id: t.Optional[str] = None) -> t.List[t.Dict[str, t.Any]]:
        """The voices of the engines in the chain."""
        voices = []
        if "edge" in self.chain or not self.chain:
            for (language, gender), name in EDGE_VOICES.items():
                person, region = name.rpartition("-")[2].removesuffix("Neural"), language.rpartition("-")[2]
                voices.append(VoiceProfile(name, person, gender, "adult", region, language, TTSEngine.EDGE))
        if "system" in self.chain:
            for gender in ("female", "male"):
                voices.append(
                    VoiceProfile(
                        f"system-{gender}", f"System voice ({gender})", gender, "adult", "US", "en-US", TTSEngine.AZURE
                    )
                )
        return [self._describe(voice) for voice in voices]

    def _describe(self, voice: VoiceProfile) -> t.Dict[str, t.Any]:
        settings = voice.settings or VoiceSettings()
        return {
            "voice_id": voice.voice_id,
            "name": voice.name,
            "gender": voice.gender,
            "age": voice.age,
            "accent": voice.accent,
            "language": voice.language,
            "engine": "system" if voice.voice_id.startswith("system-") else voice.engine.value,
            "settings": {
                "stability": settings.stability,
                "similarity_boost": settings.similarity_boost,
                "speed": settings.speed,
                "pitch": settings.pitch,
                "volume": settings.volume,
                "style": settings.style.value if isinstance(settings.style, VoiceStyle) else settings.style,
            },
        }

    async def set_user_voice_preference(
        self, user_id: str, voice_data: t.Dict[str, t.Any], context: t.Optional[str] = None, is_default: bool = False
    ) -> bool:
        profile = self._profile(voice_data)
        self._voices[user_id, "" if is_default or not context else context] = profile
        while len(self._voices) > 10_000:
            self._voices.popitem(last=False)
        service = self.streaming_service
        if service is not None:
            try:
                await asyncio.wait_for(service.set_user_voice_preference(user_id, profile, context, is_default), 5)
            except Exception as error:  # ours is kept; theirs is a copy for their analytics
                logger.warning("Voice preference was not passed on", error=type(error).__name__)
        return True

    async def rate_voice(
        self, user_id: str, voice_data: t.Dict[str, t.Any], rating: float, feedback: t.Optional[str] = None
    ) -> bool:
        self._ratings.append(
            {
                "user_id": user_id,
                "voice_id": self._profile(voice_data).voice_id,
                "rating": float(rating),
                "feedback": feedback,
                "at": time.time(),
            }
        )
        service = self.streaming_service
        if service is not None:
            try:
                await asyncio.wait_for(
                    service.rate_voice_interaction(user_id, self._profile(voice_data), rating, feedback), 5
                )
            except Exception as error:  # as above
                logger.warning("Voice rating was not passed on", error=type(error).__name__)
        return True

    def speaks_now(self) -> t.Dict[str, t.Any]:
        """The engine that would speak now, and why the better ones would not."""
        reasons: t.Dict[str, str] = {}
        for name in self.chain:
            breaker = self.breakers[name]
            if breaker.state == "closed" and not self.engines[name].unavailable():
                return {"engine": name, "not": reasons}
            reasons[name] = self.engines[name].unavailable() or breaker.last_error or breaker.state
        return {"engine": "text_only", "not": reasons}

    async def get_service_status(self) -> t.Dict[str, t.Any]:
        """From what happened, without any synthesis. ``status``: healthy, degraded (a fallback speaks), unhealthy (text
        only)."""
        if not self.is_initialized:
            return {
                "status": "not_initialized",
                "service_status": "not_initialized",
                "initialized": False,
                "is_initialized": False,
                "engines": {},
            }
        engines = {}
        for name in self.chain:
            why = self.engines[name].unavailable()
            state = self.breakers[name].health()
            engines[name] = {**state, "status": "unavailable", "last_error": why} if why else state
        engines["text_only"] = {"status": "healthy", "breaker": "closed"}
        healthy = [name for name in self.chain if engines[name]["status"] == "healthy"]
        status = "unhealthy" if not healthy else "healthy" if healthy[0] == self.chain[0] else "degraded"
        times = sorted(self._generation_ms)
        return {
            "status": status,
            "service_status": status,
            "initialized": True,
            "is_initialized": True,
            "engines": {
                "overall_status": status,
                "engines": engines,
                "healthy_engines": len(healthy),
                "total_engines": len(self.chain),
            },
            "cache": self.cache.stats(),
            "performance": {
                "total_requests": self._requests,
                "success_rate_percent": round(100 * self._spoken / self._requests, 2) if self._requests else 100.0,
                "avg_generation_time_ms": round(sum(times) / len(times), 1) if times else 0.0,
                "engine_usage": dict(self._usage),
            },
            "quality": {
                "ratings": len(self._ratings),
                "average": (
                    round(sum(entry["rating"] for entry in self._ratings) / len(self._ratings), 2)
                    if self._ratings
                    else None
                ),
            },
            "speaks_now": self.speaks_now(),
            "fallbacks": dict(self.fallbacks),
            "chain": [*self.chain, "text_only"],
        }

    async def get_user_analytics(self, user_id: str) -> t.Dict[str, t.Any]:
        own = [entry for entry in self._ratings if entry["user_id"] == user_id]
        service = self.streaming_service
        theirs: t.Dict[str, t.Any] = {}
        if service is not None:
            try:
                theirs = dict(await asyncio.wait_for(service.get_user_analytics(user_id), 5) or {})
            except Exception as error:  # analytics of a service that is not running
                logger.info("No analytics from the streaming service", error=type(error).__name__)
        return {"user_id": user_id, "total_ratings": len(own), **theirs, "ratings": own}

    async def clear_cache(self, older_than_hours: t.Optional[float] = None) -> t.Dict[str, t.Any]:
        try:
            cleared = await asyncio.to_thread(self.cache.clear, 3600.0 * (older_than_hours or 0))
        except Exception as error:
            return {"error": f"the cache could not be cleared: {type(error).__name__}"}
        return {"success": True, "cleared_entries": cleared, "older_than_hours": older_than_hours}


tts_service = TTSService()


async def startup() -> None:
    """Around the application's lifespan: some releases start this service only when the first voice request comes."""
    if not tts_service.is_initialized:
        await tts_service.initialize()


async def shutdown() -> None:
    await tts_service.shutdown()
