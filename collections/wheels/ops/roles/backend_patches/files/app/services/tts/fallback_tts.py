# SPDX-License-Identifier: MIT
"""Speech from what the machine itself has, and plain text where it has nothing.

Engines: espeak-ng or espeak, pyttsx3, ``say`` (macOS), PowerShell (Windows). Each runs as a process of its own with a
fixed argument list; the text goes to its standard input and nowhere else, so no text can become an option, a file name
or code. A process is limited in time, processor time and memory, and its whole group is killed when nobody waits for
it any more. What comes back is checked: no audio is a failure, and what is called WAV has a correct WAV header.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import re
import shutil
import signal
import struct
import sys
import tempfile
import time
import typing as t
from dataclasses import dataclass
from enum import Enum

from app.core.logging import get_logger

from .base_tts import AudioChunk, AudioFormat, BaseTTSEngine, TTSEngine, TTSRequest, TTSResponse, VoiceProfile

logger = get_logger(__name__)

#: Longest text that is spoken, in characters; longer requests are refused, not cut.
MAX_TEXT = 10_000
#: Seconds a local engine may take, so that the next one can still speak in time: espeak-ng speaks 500 characters in
#: 0.03 s.
TIME_LIMIT = 1.2
#: Seconds for which an engine that was not done in time is asked last.
SLOW_FOR = 300.0
#: Seconds that the question for an engine's languages may take, after which it is asked again where it did not answer;
#: and voices that are remembered as failing.
ASK_LIMIT, ASK_AGAIN, MAX_FAILING = 0.6, 15.0, 256
#: Limits of the engine's process: processor seconds and bytes of address space.
CPU_LIMIT = 10
MEMORY_LIMIT = 512 * 1024 * 1024
#: More than this from an engine is a defect of the engine (ten minutes of 22,050 Hz 16 bit mono).
MAX_AUDIO = 26_460_000
STREAM_PIECE = 16_384


class LocalEngine(Enum):
    """What ``engine_used`` says for speech that was made here; the application's own list has no name for it."""

    SYSTEM = "system"
    TEXT_ONLY = "text_only"


class SpeechError(Exception):
    """No audio. ``kind``: missing, refused, timeout, no_audio, garbage, dropped, failed, busy, too_long, empty."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Voice:
    """How to speak, for every engine. ``speed``, ``pitch`` and ``volume`` are factors, 1.0 as usual."""

    language: str = "en-US"
    gender: str = "female"
    speed: float = 1.0
    pitch: float = 1.0
    volume: float = 1.0

    def wpm(self) -> int:
        return int(min(450.0, max(80.0, 175.0 * self.speed)))


@dataclass(frozen=True)
class Audio:
    """Complete audio of one utterance, of one engine."""

    data: bytes
    format: AudioFormat
    sample_rate: int
    duration_ms: int
    engine: str


# Audio containers ----------------------------------------------------------------------------------------------------


def wav_with_sizes(data: bytes) -> bytes:
    """The same WAV with true sizes in its header: programs that write to a pipe put a huge number there."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise SpeechError("garbage", "this is not a WAV file")
    position = 12
    while position + 8 <= len(data):
        name, size = data[position : position + 4], struct.unpack_from("<I", data, position + 4)[0]
        if name == b"data":
            body = data[position + 8 : position + 8 + min(size, len(data) - position - 8)]
            body = body[: len(body) // 2 * 2]
            head = (
                data[:4]
                + struct.pack("<I", position + len(body))
                + data[8 : position + 4]
                + struct.pack("<I", len(body))
            )
            return head + body
        position += 8 + size + size % 2
    raise SpeechError("no_audio", "the WAV file has no data")


def wav_facts(data: bytes) -> t.Tuple[int, int]:
    """Sample rate in Hz and duration in ms of a WAV with true sizes; raises ``SpeechError`` when it holds no sound."""
    try:
        position, rate, byte_rate = 12, 0, 0
        while position + 8 <= len(data):
            name, size = data[position : position + 4], struct.unpack_from("<I", data, position + 4)[0]
            if name == b"fmt ":
                rate, byte_rate = struct.unpack_from("<II", data, position + 12)
            elif name == b"data":
                if not size or not byte_rate or not any(data[position + 8 : position + 8 + size]):
                    break
                return rate, int(1000 * size / byte_rate)
            position += 8 + size + size % 2
    except struct.error as error:
        raise SpeechError("garbage", f"the WAV header is broken: {error}") from error
    raise SpeechError("no_audio", "the WAV file holds no sound")


def container_of(data: bytes) -> t.Optional[AudioFormat]:
    """What the bytes are, by their beginning, whatever anybody calls them; None for no audio at all."""
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return AudioFormat.WAV
    if data[:3] == b"ID3" or (len(data) > 3 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0 and data[1] & 0x06):
        return AudioFormat.MP3
    if data[:4] == b"OggS":
        return AudioFormat.OGG
    if data[:4] == b"\x1a\x45\xdf\xa3":
        return AudioFormat.WEBM
    return None


def speakable(text: t.Optional[str]) -> str:
    """The text as an engine gets it: control characters become spaces, ``[[`` is parted as espeak reads it as phonemes.

    Raises ``SpeechError`` (empty, too_long).
    """
    clean = "".join(
        " " if (ord(character) < 32 and character not in "\n\t") or 127 <= ord(character) < 160 else character
        for character in text or ""
    )
    clean = clean.encode("utf-8", "ignore").decode("utf-8").replace("[[", "[ [").replace("[[", "[ [").strip()
    if not clean:
        raise SpeechError("empty", "there is nothing to say")
    if len(clean) > MAX_TEXT:
        raise SpeechError("too_long", f"{len(clean)} characters are more than {MAX_TEXT}")
    return clean


# Programs ------------------------------------------------------------------------------------------------------------

#: Speaks standard input into the file named by its only argument. Runs in the application's interpreter, by itself:
#: pyttsx3 blocks, keeps global state and may crash with its library.
_PYTTSX3 = """
import sys, pyttsx3
target, rate, volume = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
engine = pyttsx3.init()
engine.setProperty("rate", rate)
engine.setProperty("volume", volume)
engine.save_to_file(sys.stdin.buffer.read().decode("utf-8"), target)
engine.runAndWait()
"""
#: The text comes by standard input, the file name by the environment: nothing is put into the script.
_POWERSHELL = (
    "[Console]::InputEncoding = [Text.Encoding]::UTF8; Add-Type -AssemblyName System.Speech; "
    "$s = New-Object System.Speech.Synthesis.SpeechSynthesizer; $s.SetOutputToWaveFile($env:TTS_TARGET); "
    "$s.Speak([Console]::In.ReadToEnd()); $s.Dispose()"
)


ENGLISH = "en-us"


def locale_of(voice: Voice) -> str:
    """The voice's language as espeak writes one: ``pt-br``. Anything that is not a plain locale becomes English."""
    language = voice.language.replace("_", "-").lower()
    plain = all(part.isalnum() and part.isascii() and len(part) <= 8 for part in language.split("-"))
    return language if plain else ENGLISH


def espeak_languages(listing: str) -> t.Dict[str, str]:
    """From what ``espeak-ng --voices`` prints: every name of a language (``zh`` too) -> the one to ask for (``cmn``).

    A row is ``Pty Language Age/Gender VoiceName File Other Languages``. Voices of MBROLA (``mb/``) need a program and
    data that seldom are there.
    """
    own: t.Dict[str, str] = {}
    other: t.Dict[str, t.Tuple[int, str]] = {}
    for line in listing.splitlines()[1:]:
        words = line.split()
        if len(words) < 5 or words[4].startswith("mb/"):
            continue
        name = words[1].lower()
        own.setdefault(name, name)
        for alias, priority in re.findall(r"\(([\w-]+) (\d+)\)", line):  # the lower, the better
            other[alias.lower()] = min(other.get(alias.lower(), (100, "")), (int(priority), name))
    return {**{alias: name for alias, (_ignored, name) in other.items()}, **own}


def espeak_voice(voice: Voice, languages: t.Optional[t.Mapping[str, str]] = None) -> str:
    """The espeak voice for a locale and gender: ``en-us+f3``. ``languages``: what ``espeak_languages`` gave; a language
    that is not among them becomes English."""
    language = locale_of(voice)
    # espeak-ng knows regions for few languages only; the plain language is always right.
    base = language.split("-")[0]
    if languages:
        name = languages.get(language) or languages.get(base) or ENGLISH
    else:
        name = language if language in (ENGLISH, "en-gb", "fr-be", "fr-ch", "pt-br", "es-419") else base
    return f"{name}+{'m3' if voice.gender.lower().startswith('m') else 'f3'}"


def espeak_voices(voice: Voice, languages: t.Optional[t.Mapping[str, str]] = None) -> t.List[str]:
    """The voices to try, best first: the one asked for, the plain voice of its language, English."""
    first = espeak_voice(voice, languages)
    name, _ignored, variant = first.partition("+")
    return list(dict.fromkeys([first, name.split("-")[0] if not languages else name, f"{ENGLISH}+{variant}", "en"]))[:3]


@dataclass(frozen=True)
class Program:
    """One local engine: ``name`` as callers know it, ``path`` of the program, whether it writes to a file."""

    name: str
    path: str
    to_file: bool

    def words(self, voice: Voice, target: str, spoken: str = "") -> t.List[str]:
        """The argument list. It holds numbers, a voice of our own making and a path of our own making: never text.

        ``spoken``: the voice's name, where it is not that of ``espeak_voice``.
        """
        if self.name == "espeak":
            pitch, volume = int(min(99, max(0, 50 * voice.pitch))), int(min(200, max(0, 100 * voice.volume)))
            return [
                self.path,
                "--stdin",
                "--stdout",
                "-b",
                "1",
                "-v",
                spoken or espeak_voice(voice),
                "-s",
                str(voice.wpm()),
                "-p",
                str(pitch),
                "-a",
                str(volume),
            ]
        if self.name == "pyttsx3":
            return [
                self.path,
                "-I",
                "-c",
                _PYTTSX3,
                target,
                str(voice.wpm()),
                f"{min(1.0, max(0.0, voice.volume)):.2f}",
            ]
        if self.name == "macos_say":
            return [
                self.path,
                "-r",
                str(voice.wpm()),
                "--file-format=WAVE",
                "--data-format=LEI16@22050",
                "-o",
                target,
                "-f",
                "-",
            ]
        return [self.path, "-NoProfile", "-NonInteractive", "-Command", _POWERSHELL]


def find_programs() -> t.List[Program]:
    """The local engines of this machine, best first. Looks, and starts nothing."""
    programs = []
    for name in ("espeak-ng", "espeak"):
        path = shutil.which(name)
        if path:
            programs.append(Program("espeak", path, to_file=False))
            break
    if sys.platform == "darwin" and shutil.which("say"):
        programs.insert(0, Program("macos_say", str(shutil.which("say")), to_file=True))
    if os.name == "nt":
        path = shutil.which("pwsh") or shutil.which("powershell")
        if path:
            programs.append(Program("powershell_tts", path, to_file=True))
    with contextlib.suppress(ImportError, ValueError):
        if importlib.util.find_spec("pyttsx3") is not None and sys.executable:
            programs.append(Program("pyttsx3", sys.executable, to_file=True))
    return programs


def _limit(pid: int) -> None:
    """Bounds a process that just started; from outside, as code between fork and exec may deadlock beside threads."""
    try:
        import resource

        prlimit = resource.prlimit
    except (ImportError, AttributeError):  # not Linux: the time limit alone must do
        return
    with contextlib.suppress(OSError, ValueError):
        prlimit(pid, resource.RLIMIT_CPU, (CPU_LIMIT, CPU_LIMIT))
        prlimit(pid, resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
        prlimit(pid, resource.RLIMIT_CORE, (0, 0))


async def _kill(process: asyncio.subprocess.Process) -> None:
    """Kills the process with everything it started and waits for its end, so that neither is left behind."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    # A pipe that is not read to its end keeps the transport, and with it two descriptors, open.
    transport = getattr(process, "_transport", None)
    if transport is not None:
        transport.close()
    with contextlib.suppress(ProcessLookupError):
        await process.wait()


async def _start(words: t.Sequence[str], environment: t.Optional[t.Dict[str, str]]) -> asyncio.subprocess.Process:
    """A program in a session of its own. Cancelled meanwhile, it is ended with all that it has started."""
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        # By itself asyncio would end the program alone, and wait for ever while its children hold the pipe.
        with contextlib.suppress(OSError):  # it did not start
            await asyncio.shield(_kill(await starting))
        raise


async def run_program(
    words: t.Sequence[str], text: str, *, limit: float, environment: t.Optional[t.Dict[str, str]] = None
) -> bytes:
    """Starts a program, writes the text to it, gives what it printed. Kills its group on time-out and on
    cancellation."""
    process = await _start(words, environment)
    _limit(process.pid)
    try:
        output, _ignored = await asyncio.wait_for(process.communicate(text.encode("utf-8")), limit)
    except asyncio.TimeoutError:
        raise SpeechError("timeout", f"{os.path.basename(words[0])} was not done within {limit:g} s") from None
    finally:
        if process.returncode is None:
            await asyncio.shield(_kill(process))
    if process.returncode:
        raise SpeechError("failed", f"{os.path.basename(words[0])} ended with {process.returncode}")
    if len(output) > MAX_AUDIO:
        raise SpeechError("garbage", f"{os.path.basename(words[0])} wrote {len(output)} bytes")
    return output


async def speak_with(program: Program, text: str, voice: Voice, *, limit: float, spoken: str = "") -> Audio:
    """One utterance by one local program, as WAV. Raises ``SpeechError``."""
    clean = speakable(text)
    # Ten minutes of speech are not wanted from a machine that is slow already: long texts get more time, not endless.
    limit += len(clean) / 1000
    try:
        if not program.to_file:
            raw = await run_program(program.words(voice, "", spoken), clean, limit=limit)
        else:
            directory = tempfile.mkdtemp(prefix="pam-tts-")
            try:
                target = os.path.join(directory, "speech.wav")
                await run_program(
                    program.words(voice, target), clean, limit=limit, environment={**os.environ, "TTS_TARGET": target}
                )
                with open(target, "rb") as file:
                    raw = file.read(MAX_AUDIO + 1)
            finally:
                shutil.rmtree(directory, ignore_errors=True)
    except OSError as error:
        raise SpeechError("missing", f"{program.name} cannot be started: {error.strerror or error}") from error
    if not raw:
        raise SpeechError("no_audio", f"{program.name} made no audio")
    data = wav_with_sizes(raw)
    rate, duration = wav_facts(data)
    return Audio(data, AudioFormat.WAV, rate, duration, program.name)


class FailingVoices:
    """Voices that failed while their engine works: each is left aside, for a minute at first, for ten in the end."""

    FIRST, LAST = 60.0, 600.0

    def __init__(self) -> None:
        self._until: t.Dict[str, t.Tuple[float, float]] = {}

    def order(self, voices: t.Sequence[str]) -> t.List[str]:
        """The same voices, those that failed lately at the end."""
        now = time.monotonic()
        return sorted(voices, key=lambda name: self._until.get(name, (0.0, 0.0))[0] > now)

    def failed(self, voice: str) -> None:
        pause = min(self.LAST, 2 * self._until.pop(voice, (0.0, self.FIRST / 2))[1])
        self._until[voice] = (time.monotonic() + pause, pause)
        while len(self._until) > MAX_FAILING:
            self._until.pop(next(iter(self._until)))

    def spoke(self, voice: str) -> None:
        self._until.pop(voice, None)


#: Failures that another voice of the same engine may not have.
OF_THE_VOICE = ("failed", "no_audio", "garbage")


class FallbackTTSService:
    """The local engines one after the other, then plain text. ``available_engines`` always ends with ``text_only``."""

    def __init__(self) -> None:
        self.is_initialized = False
        self.available_engines: t.List[str] = []
        self.programs: t.List[Program] = []
        self._slots: t.Optional[asyncio.Semaphore] = None
        self._slots_loop: t.Optional[asyncio.AbstractEventLoop] = None
        self._slow: t.Dict[str, float] = {}
        self._languages: t.Dict[str, t.Tuple[float, t.Dict[str, str]]] = {}
        self.failing = FailingVoices()

    async def initialize(self) -> bool:
        """Looks for engines; may be called again. Always True, as text is always possible."""
        self.programs = find_programs()
        self.available_engines = [program.name for program in self.programs] + ["text_only"]
        self.is_initialized = True
        if self.programs:
            logger.info("Fallback TTS initialized", engines=self.available_engines)
        else:
            logger.warning(
                "Fallback TTS has no local engine, text only. Install espeak-ng.", engines=self.available_engines
            )
        return True

    def _semaphore(self) -> asyncio.Semaphore:
        """As many engines at once as there are processors: more only makes each of them slower."""
        loop = asyncio.get_running_loop()
        if self._slots is None or self._slots_loop is not loop:
            self._slots, self._slots_loop = asyncio.Semaphore(max(1, os.cpu_count() or 1)), loop
        return self._slots

    async def languages(self, program: Program) -> t.Dict[str, str]:
        """What espeak says that it speaks, asked once for a program; empty where it does not say."""
        asked, languages = self._languages.get(program.path, (float("-inf"), {}))
        if languages or time.monotonic() - asked < ASK_AGAIN:
            return languages
        self._languages[program.path] = (time.monotonic(), {})
        try:
            listing = await run_program([program.path, "--voices"], "", limit=ASK_LIMIT)
        except (SpeechError, OSError) as error:
            logger.info("The local TTS engine does not list its languages", engine=program.name, error=str(error))
            return {}
        languages = espeak_languages(listing.decode("utf-8", "replace"))
        self._languages[program.path] = (time.monotonic(), languages)
        return languages

    async def _speak_with(self, program: Program, text: str, voice: Voice) -> Audio:
        """One engine's audio: in the voice asked for, else in the plain one of its language, else in English."""
        if program.name != "espeak":
            return await speak_with(program, text, voice, limit=TIME_LIMIT)
        english = locale_of(voice).split("-")[0] == "en"
        names = self.failing.order(espeak_voices(voice, None if english else await self.languages(program)))
        for number, name in enumerate(names):
            try:
                audio = await speak_with(program, text, voice, limit=TIME_LIMIT, spoken=name)
            except SpeechError as error:
                # A text without a sound says nothing about the voice.
                sounds = any(character.isalnum() for character in text)
                if error.kind not in OF_THE_VOICE or number + 1 == len(names) or not sounds:
                    raise
                self.failing.failed(name)
                logger.info("A local TTS voice failed, another one speaks", voice=name, cause=error.kind)
            else:
                self.failing.spoke(name)
                return audio
        raise SpeechError("failed", f"{program.name} has no voice")

    async def speak(self, text: str, voice: t.Optional[Voice] = None) -> Audio:
        """Audio of the first local engine that makes some. Raises ``SpeechError`` with the last engine's reason."""
        if not self.is_initialized:
            await self.initialize()
        speakable(text)
        last = SpeechError("missing", "there is no speech engine on this machine; install espeak-ng")
        slots = self._semaphore()
        try:
            # In a queue that is longer than the patience of those who wait in it, everybody would get nothing.
            await asyncio.wait_for(slots.acquire(), 2 * TIME_LIMIT)
        except asyncio.TimeoutError:
            raise SpeechError("busy", "more is to be said than this machine can say") from None
        try:
            now = time.monotonic()
            for program in sorted(self.programs, key=lambda candidate: self._slow.get(candidate.name, 0.0) > now):
                try:
                    return await self._speak_with(program, text, voice or Voice())
                except SpeechError as error:
                    logger.warning("Local TTS engine failed", engine=program.name, cause=error.kind, error=str(error))
                    last = error
                    if error.kind == "timeout":
                        self._slow[program.name] = time.monotonic() + SLOW_FOR
            raise last
        finally:
            slots.release()

    async def synthesize_speech(self, text: str, user_id: t.Optional[str] = None) -> t.Dict[str, t.Any]:
        """``audio_data, format, duration`` (seconds)``, engine, success``; without audio also ``text_response, message,
        degraded``."""
        try:
            audio = await self.speak(text)
        except SpeechError as error:
            return {
                "audio_data": None,
                "format": "text",
                "duration": 0.0,
                "engine": "text_only",
                "success": True,
                "degraded": True,
                "text_response": text,
                "message": f"Audio is not available, showing text: {error}",
                "error_kind": error.kind,
            }
        return {
            "audio_data": audio.data,
            "format": audio.format.value,
            "duration": audio.duration_ms / 1000,
            "engine": audio.engine,
            "success": True,
            "degraded": False,
            "sample_rate": audio.sample_rate,
        }

    async def shutdown(self) -> None:
        """Nothing runs between two requests; a request that is under way ends its own process."""
        self.is_initialized = False


def voice_of(profile: t.Optional[VoiceProfile]) -> Voice:
    """How a voice profile of the application sounds here: the same language, gender and tempo."""
    if profile is None:
        return Voice()
    settings = profile.settings
    name = profile.voice_id or ""
    parts = name.split("-")
    language = "-".join(parts[:2]) if len(parts) >= 3 else (profile.language or "en-US")
    return Voice(
        language=language,
        gender=profile.gender or "female",
        speed=float(getattr(settings, "speed", 1.0) or 1.0),
        pitch=float(getattr(settings, "pitch", 1.0) or 1.0),
        volume=float(getattr(settings, "volume", 1.0) or 1.0),
    )


class SystemTTS(BaseTTSEngine):
    """The local engines behind the interface that the application's engine managers use."""

    def __init__(self) -> None:
        # The application's list of engines has no member for the machine's own; callers know it under this one.
        super().__init__(TTSEngine.AZURE)
        self.fallback_service = FallbackTTSService()
        self.available_voices: t.List[VoiceProfile] = []

    async def initialize(self) -> bool:
        """Whether the machine has an engine at all; text only is no engine."""
        await self.fallback_service.initialize()
        self.is_initialized = bool(self.fallback_service.programs)
        self.available_voices = [
            VoiceProfile(
                f"system-{gender}", f"System voice ({gender})", gender, "adult", "American", "en-US", TTSEngine.AZURE
            )
            for gender in (("female", "male") if self.is_initialized else ())
        ]
        return self.is_initialized

    def is_available(self) -> bool:
        return bool(self.fallback_service.programs or find_programs())

    async def synthesize(self, request: TTSRequest) -> TTSResponse:
        """A response with audio, or ``success=False`` so that a manager can ask its next engine."""
        start = time.monotonic()
        try:
            audio = await self.fallback_service.speak(request.text, voice_of(request.voice_profile))
        except SpeechError as error:
            return TTSResponse(
                request=request,
                error=str(error),
                success=False,
                generation_time_ms=int(1000 * (time.monotonic() - start)),
            )
        request.format, request.sample_rate = audio.format, audio.sample_rate
        return TTSResponse(
            request=request,
            audio_data=audio.data,
            duration_ms=audio.duration_ms,
            generation_time_ms=int(1000 * (time.monotonic() - start)),
            engine_used=t.cast(TTSEngine, LocalEngine.SYSTEM),
        )

    async def synthesize_stream(self, request: TTSRequest) -> t.AsyncGenerator[AudioChunk, None]:
        """One WAV file in pieces. Raises ``SpeechError`` when there is no audio."""
        audio = await self.fallback_service.speak(request.text, voice_of(request.voice_profile))
        for chunk in pieces(audio):
            yield chunk

    async def get_available_voices(self) -> t.List[VoiceProfile]:
        return list(self.available_voices)

    async def health_check(self) -> t.Dict[str, t.Any]:
        engines = list(self.fallback_service.available_engines)
        return {
            "status": "healthy" if self.is_initialized and self.fallback_service.programs else "unhealthy",
            "engine_available": self.is_available(),
            "available_engines": engines,
            "available_voices": len(self.available_voices),
            "supports_streaming": True,
        }

    async def close(self) -> None:
        await self.fallback_service.shutdown()
        self.is_initialized = False

    def supports_streaming(self) -> bool:
        return True

    def get_supported_formats(self) -> t.List[AudioFormat]:
        return [AudioFormat.WAV]

    def get_max_text_length(self) -> int:
        return 5000


def pieces(
    audio: Audio, *, first_index: int = 0, final: bool = True, metadata: t.Optional[t.Dict[str, t.Any]] = None
) -> t.Iterator[AudioChunk]:
    """Complete audio as chunks; the last one says so when ``final``."""
    count = max(1, -(-len(audio.data) // STREAM_PIECE))
    for index in range(count):
        yield AudioChunk(
            data=audio.data[index * STREAM_PIECE : (index + 1) * STREAM_PIECE],
            sample_rate=audio.sample_rate,
            format=audio.format,
            chunk_index=first_index + index,
            is_final=final and index == count - 1,
            metadata={"engine": audio.engine, **(metadata or {})},
        )


fallback_tts_service = FallbackTTSService()


async def startup() -> None:
    """Around the application's lifespan."""
    if not fallback_tts_service.is_initialized:
        await fallback_tts_service.initialize()


async def shutdown() -> None:
    await fallback_tts_service.shutdown()
