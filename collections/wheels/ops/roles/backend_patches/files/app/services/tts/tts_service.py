# SPDX-License-Identifier: MIT
"""Speech for PAM: Edge, then Coqui, then the machine's own engines, then text only.

- ``TTS_PRIMARY_ENGINE`` chooses where the chain begins (``edge``, ``coqui``; ``fallback`` or ``system`` for the
  machine's own engines only), ``TTS_FALLBACK_ENABLED=false`` ends it after its first engine.
- Every engine has budgets in time. An engine that is slow to begin is overtaken by the next one before any audio has
  been sent; two engines never speak inside one segment.
- A breaker per engine, by class of error, keeps users from waiting for what is known to be dead. Recovery is found by
  probes in the background, never by a user's request.
- Only audio that was made makes an engine healthy. The status is read from what happened; asking for it costs nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import random
import re
import time
import typing as t
from collections import OrderedDict, deque

from app.core.logging import get_logger
from app.wheels_ops.tts_cache import Cache
from app.wheels_ops.tts_engines import (
    ATTEMPTS,
    EDGE_VOICE,
    EDGE_VOICES,
    PROBE_FIRST,
    Attempt,
    Breaker,
    CoquiEngine,
    EdgeEngine,
    Engine,
    SystemEngine,
    flag,
    gender_of,
    observe,
    setting,
)

from .base_tts import AudioChunk, AudioFormat, TTSEngine, TTSRequest, TTSResponse, VoiceProfile, VoiceSettings, VoiceStyle
from .fallback_tts import STREAM_PIECE, Audio, LocalEngine, SpeechError, Voice, container_of, pieces, speakable, voice_of, wav_facts

logger = get_logger(__name__)

#: Seconds until the first audio of a remote engine (``TTS_FIRST_AUDIO_SECONDS``), and without any after it (complete and
#: streamed answers).
FIRST_AUDIO, GAP_COMPLETE, GAP_STREAM = 1.2, 1.0, 2.0
#: Seconds of silence after which the next engine starts beside the first (``TTS_HEDGE_SECONDS``).
HEDGE = 0.4
#: A remote engine may take TOTAL seconds for a complete utterance, and PER_CHARACTER for each character over FREE; the next
#: engine has spoken by then, as it begins RESERVE seconds before. Nobody waits longer than ANSWER (for a complete answer, or
#: for the next sound of a stream; the same per character): then it is text.
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
_ENGINE_NAMES = {"edge": TTSEngine.EDGE, "coqui": TTSEngine.COQUI, "system": LocalEngine.SYSTEM, "text_only": LocalEngine.TEXT_ONLY}


def _seconds(name: str, default: float) -> float:
    """A time from the environment or the settings, within a tenth and a minute."""
    try:
        return min(60.0, max(0.1, float(setting(name, default))))
    except (TypeError, ValueError):
        return default


def segments(text: str, limit: int = SEGMENT) -> t.List[str]:
    """The text in parts of at most ``limit`` characters that end with a sentence, or with a word if one is too long."""
    parts: t.List[str] = []
    rest = text.strip()
    while len(rest) > limit:
        ends = [found.end() for found in re.finditer(r"[.!?…。！？]+[\"')\]]*\s+|\n+", rest[:limit])]
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
        """The application's own streaming service, or None: in one release it cannot be imported (it names a class that is gone)."""
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
        self.hedge, self.first_audio = _seconds("TTS_HEDGE_SECONDS", HEDGE), _seconds("TTS_FIRST_AUDIO_SECONDS", FIRST_AUDIO)
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
        tasks = [*self._probes.values(), *self._background, *self._flights.values()]
        for attempt in list(ATTEMPTS):
            attempt.drop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._probes.clear()
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
        """Asks an engine for audio: at once where nothing is known of it, then while its breaker is open, with pauses."""
        engine, breaker = self.engines[name], self.breakers[name]
        while True:
            if breaker.state != "closed":
                wanted = time.monotonic() - self._last_request < DEMAND
                pause = min(breaker.pause, PROBE_BUSY if wanted else PROBE_IDLE) * random.uniform(0.9, 1.1)
                breaker.pause = min(2 * breaker.pause, PROBE_IDLE)
                breaker.retry_at = time.monotonic() + pause
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._wake[name].wait(), pause)
                self._wake[name].clear()
            why = engine.unavailable()
            if why:
                breaker.failure("missing", why)
                continue
            if breaker.state == "open":
                breaker.state = "half_open"
            attempt = Attempt(engine, breaker, PROBE_TEXT, Voice(), "", first=PROBE_BUDGET, gap=GAP_STREAM, total=2 * PROBE_BUDGET)
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
        """Somebody wants speech: probes that slept long because nobody did come earlier. The request does not wait for them."""
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
        return Attempt(self.engines[name], self.breakers[name], text, voice, wanted, first=self.first_audio if remote else 60.0, gap=gap, total=total)

    def _fell(self, name: str, cause: str) -> None:
        key = f"{name}:{cause}"
        self.fallbacks[key] = self.fallbacks.get(key, 0) + 1
        if self.breakers[name].state != "closed":
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

    async def _first_speaker(self, text: str, voice: Voice, wanted: str, order: t.Sequence[str], until: float) -> Attempt:
        """The attempt that has audio first; the others are dropped before anything is sent. ``until`` (monotonic) at the latest."""
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
            found = self.cache.get(Cache.key(name, voice, wanted, text))
            if found is not None:
                return found
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
        if task is None:

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
        """What ``work`` gives within ``limit`` seconds. Later it goes on without the caller, so that its engines are judged to their end."""
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
        given = data.get("settings") if isinstance(data.get("settings"), dict) else {}
        settings = VoiceSettings()
        for key in ("stability", "similarity_boost", "speed", "pitch", "volume"):
            with contextlib.suppress(TypeError, ValueError):
                setattr(settings, key, min(2.0, max(0.25, float(t.cast(t.Any, given).get(key, getattr(settings, key))))))
        try:
            engine = TTSEngine(data.get("engine") or "edge")
        except ValueError:
            engine = TTSEngine.EDGE
        gender = str(data.get("gender") or (gender_of(name) if edge else "male" if name.endswith("-male") else "female"))
        language = str(data.get("language") or ("-".join(name.split("-")[:2]) if edge else "en-US"))
        return VoiceProfile(
            name, str(data.get("name") or name), gender, str(data.get("age") or "adult"), str(data.get("accent") or ""), language, engine, settings
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
            request=request, success=honest, error=f"Audio is not available: {error}", generation_time_ms=int(1000 * (time.monotonic() - started)),
            engine_used=t.cast(TTSEngine, LocalEngine.TEXT_ONLY) if honest else None,
        )  # fmt: skip
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
            known = None if request.user_id == TEST_USER or not self.cache.enabled else self._cached(part, voice, wanted, order)
            if known is not None:
                self.cache.hits += 1
                for chunk in pieces(known, first_index=index, final=False, metadata={"segment": number, "cached": True}):
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
                                yield AudioChunk(piece, rate, format_, index - 1, False, {"engine": engine, "segment": number, "restarted": restarted})
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
        found = []
        if "edge" in self.chain or not self.chain:
            for (language, gender), name in EDGE_VOICES.items():
                found.append(VoiceProfile(name, name.split("-")[-1].removesuffix("Neural"), gender, "adult", language.split("-")[-1], language, TTSEngine.EDGE))
        if "system" in self.chain:
            for gender in ("female", "male"):
                found.append(VoiceProfile(f"system-{gender}", f"System voice ({gender})", gender, "adult", "US", "en-US", TTSEngine.AZURE))
        return [self._describe(voice) for voice in found]

    def _describe(self, voice: VoiceProfile) -> t.Dict[str, t.Any]:
        settings = voice.settings or VoiceSettings()
        return {
            "voice_id": voice.voice_id, "name": voice.name, "gender": voice.gender, "age": voice.age, "accent": voice.accent, "language": voice.language,
            "engine": "system" if voice.voice_id.startswith("system-") else voice.engine.value,
            "settings": {
                "stability": settings.stability, "similarity_boost": settings.similarity_boost, "speed": settings.speed, "pitch": settings.pitch,
                "volume": settings.volume, "style": settings.style.value if isinstance(settings.style, VoiceStyle) else settings.style,
            },
        }  # fmt: skip

    async def set_user_voice_preference(self, user_id: str, voice_data: t.Dict[str, t.Any], context: t.Optional[str] = None, is_default: bool = False) -> bool:
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

    async def rate_voice(self, user_id: str, voice_data: t.Dict[str, t.Any], rating: float, feedback: t.Optional[str] = None) -> bool:
        self._ratings.append(
            {"user_id": user_id, "voice_id": self._profile(voice_data).voice_id, "rating": float(rating), "feedback": feedback, "at": time.time()}
        )
        service = self.streaming_service
        if service is not None:
            try:
                await asyncio.wait_for(service.rate_voice_interaction(user_id, self._profile(voice_data), rating, feedback), 5)
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
        """From what happened, without any synthesis. ``status``: healthy, degraded (a fallback speaks), unhealthy (text only)."""
        if not self.is_initialized:
            return {"status": "not_initialized", "service_status": "not_initialized", "initialized": False, "is_initialized": False, "engines": {}}
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
            "status": status, "service_status": status, "initialized": True, "is_initialized": True,
            "engines": {"overall_status": status, "engines": engines, "healthy_engines": len(healthy), "total_engines": len(self.chain)},
            "cache": self.cache.stats(),
            "performance": {
                "total_requests": self._requests,
                "success_rate_percent": round(100 * self._spoken / self._requests, 2) if self._requests else 100.0,
                "avg_generation_time_ms": round(sum(times) / len(times), 1) if times else 0.0,
                "engine_usage": dict(self._usage),
            },
            "quality": {
                "ratings": len(self._ratings),
                "average": round(sum(entry["rating"] for entry in self._ratings) / len(self._ratings), 2) if self._ratings else None,
            },
            "speaks_now": self.speaks_now(), "fallbacks": dict(self.fallbacks), "chain": [*self.chain, "text_only"],
        }  # fmt: skip

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
