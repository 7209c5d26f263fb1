# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs under the backend's interpreter: ``tts_scenarios.py DIRECTORY FUNCTION ARGUMENTS``; prints the result as one
line of JSON.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import importlib
import json
import os
import random
import sys
import time
import typing as t
from pathlib import Path


def app(name: str) -> t.Any:
    """A module of the backend, which only this interpreter can import."""
    return importlib.import_module(f"app.{name}")


def be_patient(times: float) -> None:
    """Multiplies what an answer may take."""
    for module, names in (
        ("services.tts.fallback_tts", ["TIME_LIMIT", "ASK_LIMIT"]),
        ("services.tts.tts_service", ["TOTAL", "RESERVE", "ANSWER"]),
    ):
        for name in names:
            setattr(app(module), name, times * getattr(app(module), name))


def set_mode(name: str) -> None:
    directory = Path(os.environ["FAKE_EDGE"])
    (directory / "mode.new").write_text(name)
    (directory / "mode.new").rename(directory / "mode")


async def service(*, settle: bool = True) -> t.Any:
    """A service whose first probes are done."""
    TTSService = app("services.tts.tts_service").TTSService

    made = TTSService()
    await made.initialize()
    if settle:
        await probed(made)
    return made


async def probed(made: t.Any) -> None:
    while any(not task.done() and made.breakers[name].state == "closed" for name, task in made._probes.items()):
        await asyncio.sleep(0.01)


def shown(answer: t.Any, *, audio: bool = False) -> t.Dict[str, t.Any]:
    data = answer.audio_data
    return {
        "success": answer.success,
        "engine": answer.engine_used.value if answer.engine_used else None,
        "format": answer.request.format.value,
        "error": answer.error,
        "bytes": len(data) if data else 0,
        "sha": hashlib.sha256(data).hexdigest() if data else "",
        "duration_ms": answer.duration_ms,
        "cache_hit": answer.cache_hit,
        "degraded": getattr(answer, "degraded", None),
        "text": getattr(answer, "text_response", None),
        "mime": getattr(answer, "mime_type", None),
        "audio": base64.b64encode(data).decode() if audio and data else "",
        "rate": answer.request.sample_rate,
    }


async def speak(text: str, times: int = 1, stream: bool = False, settle: bool = True, **arguments: t.Any) -> t.Any:
    """Says a text and gives the answers and the status."""
    made = await service(settle=settle)
    answers: t.List[t.Any] = []
    for _ in range(times):
        if stream:
            answers.append(await collect(await made.synthesize_for_pam(text, stream=True, **arguments)))
        else:
            answer = await made.synthesize_for_pam(text, **arguments)
            answers.append(None if answer is None else shown(answer, audio=True))
    status = await made.get_service_status()
    await made.shutdown()
    return {"answers": answers, "status": status}


class StubEdge:
    """In place of the package edge-tts: MP3 frames in every voice but the blocked ones, which it keeps a list of."""

    def __init__(self, blocked: t.Collection[str], kind: str) -> None:
        self.blocked, self.error = set(blocked), type(kind, (Exception,), {})
        self.asked: t.List[str] = []

    def Communicate(self, _text: str, name: str, **_settings: t.Any) -> t.Any:
        return StubSpeech(self, name)


class StubSpeech:
    def __init__(self, edge: StubEdge, name: str) -> None:
        self.edge, self.name = edge, name

    async def stream(self) -> t.AsyncIterator[t.Dict[str, t.Any]]:
        self.edge.asked.append(self.name)
        if self.name in self.edge.blocked:
            raise self.edge.error("not this voice")
        yield {"type": "audio", "data": b"\xff\xf3\x64\xc4" + bytes(600)}


async def voices(
    wishes: t.Sequence[t.Optional[str]], blocked: t.Sequence[str] = (), kind: str = "NoAudioReceived"
) -> t.Any:
    """One utterance in each wished voice, then one in the default voice; Edge, where it is in the chain, is a stub."""
    speaking = app("services.tts.tts_service")
    made = speaking.TTSService()
    made.engines["edge"] = speaking.EdgeEngine()
    made.engines["edge"].module = stub = StubEdge(blocked, kind)
    await made.initialize()
    await probed(made)
    engines = []
    for number, wish in enumerate([*wishes, None]):
        answer = await made.synthesize_for_pam(
            f"Sentence number {number}.", user_id=f"u{number}", voice_preference=wish
        )
        while speaking.ATTEMPTS:
            await asyncio.sleep(0.01)
        engines.append(shown(answer)["engine"])
    status = await made.get_service_status()
    await made.shutdown()
    return {"engines": engines, "asked": stub.asked, "status": status["engines"]["engines"]}


async def breaker_of_one_voice(alive: bool) -> t.Any:
    """Two time-outs of one voice: is the engine asked again before it is left alone?"""
    speaking = app("services.tts.tts_service")
    made = speaking.TTSService()
    made.engines["edge"] = speaking.EdgeEngine()
    made.engines["edge"].module = stub = StubEdge([], "ServerTimeoutError")
    await made.initialize()
    await probed(made)
    stub.blocked = {"de-DE-KatjaNeural"} | (set() if alive else {"en-US-AriaNeural"})
    for number in range(2):
        await made.synthesize_for_pam(f"Satz {number}.", voice_preference="de-DE-KatjaNeural")
    await probed(made)
    state = made.breakers["edge"].state
    await made.shutdown()
    return {"state": state}


async def collect(chunks: t.AsyncIterator[t.Any]) -> t.Dict[str, t.Any]:
    segments: t.Dict[int, bytes] = {}
    engines, finals, formats, restarted = [], 0, [], []
    last: t.Dict[str, t.Any] = {}
    started, first = time.monotonic(), None
    before, longest = started, 0.0
    async for chunk in chunks:
        now = time.monotonic()
        before, longest = now, max(longest, now - before)
        if chunk.data and first is None:
            first = time.monotonic() - started
        last = chunk.metadata or {}
        finals += chunk.is_final
        if chunk.data:
            number = last["segment"]
            if number not in segments:
                engines.append(last["engine"])
                formats.append(chunk.format.value)
                restarted.append(bool(last.get("restarted")))
            segments[number] = segments.get(number, b"") + chunk.data
    return {
        "segments": [base64.b64encode(segments[number]).decode() for number in sorted(segments)],
        "engines": engines,
        "finals": finals,
        "formats": formats,
        "restarted": restarted,
        "last": last,
        "first_s": first,
        "silence_s": longest,
        "total_s": time.monotonic() - started,
    }


async def faults(modes: t.Sequence[str]) -> t.Any:
    """For every fault: a fresh service with every breaker closed, one complete and one streamed utterance."""
    found = {}
    for mode in modes:
        set_mode("ok")
        made = await service()
        set_mode(mode)
        complete = await asyncio.wait_for(made.synthesize_for_pam(f"Complete in spite of {mode}."), 20)
        made.breakers["edge"].success()
        streamed = await asyncio.wait_for(
            collect(await made.synthesize_for_pam(f"Streamed in spite of {mode}.", stream=True)), 20
        )
        found[mode] = {
            "complete": shown(complete, audio=True),
            "stream": streamed,
            "failures": made.breakers["edge"].failures,
        }
        await made.shutdown()
    return found


async def breaker(mode: str, requests: int) -> t.Any:
    """The breaker's state after every one of several failing requests."""
    set_mode("ok")
    made = await service()
    set_mode(mode)
    states = []
    for number in range(requests):
        await made.synthesize_for_pam(f"Request {number} during {mode}.")
        # An attempt that was overtaken is judged to its end.
        speaking = app("services.tts.tts_service")

        while speaking.ATTEMPTS and made.breakers["edge"].state == "closed":
            await asyncio.sleep(0.01)
        states.append(made.breakers["edge"].state)
    await made.shutdown()
    return {"states": states, "failures": made.breakers["edge"].failures}


async def recovery() -> t.Any:
    """The service comes back while nobody asks: who finds out?"""
    set_mode("ok")
    made = await service()
    set_mode("unavailable")
    before = shown(await made.synthesize_for_pam("Is anybody there?", user_id="a"))
    state_down = made.breakers["edge"].state
    requests = made._requests
    set_mode("ok")
    started = time.monotonic()
    while made.breakers["edge"].state != "closed" and time.monotonic() - started < 20:
        await asyncio.sleep(0.05)
    seconds = time.monotonic() - started
    quiet = made._requests == requests
    sticky = shown(await made.synthesize_for_pam("The same voice for the same user.", user_id="a"))
    other = shown(await made.synthesize_for_pam("The better voice for another one.", user_id="b"))
    await made.shutdown()
    return {
        "before": before,
        "state_down": state_down,
        "seconds": seconds,
        "quiet": quiet,
        "sticky": sticky,
        "other": other,
    }


async def single_flight(count: int) -> t.Any:
    set_mode("slow_ok")
    made = await service()
    answers = await asyncio.gather(
        *(made.synthesize_for_pam("The same sentence for everybody.", user_id=str(number)) for number in range(count))
    )
    again = shown(await made.synthesize_for_pam("The same sentence for everybody."))
    await made.shutdown()
    return {
        "distinct": len({answer.audio_data for answer in answers}),
        "again": again,
        "engine": answers[0].engine_used.value,
    }


def resources() -> t.Dict[str, int]:
    temporary = Path(os.environ["TMPDIR"])
    children = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                children += int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == os.getpid()
    return {
        "fds": len(os.listdir("/proc/self/fd")),
        "children": children,
        "files": sum(1 for _ in temporary.rglob("*")),
        "tasks": len(asyncio.all_tasks()),
    }


async def storm(requests: int, seed: int, modes: t.Sequence[str]) -> t.Any:
    """Many requests, some of them abandoned, while the remote engine changes its mind several times a second."""
    rng = random.Random(seed)
    set_mode("ok")
    made = await service()
    await made.synthesize_for_pam("Warm up.")
    before = resources()
    kinds: t.Dict[str, int] = {}
    slowest = 0.0
    stop = asyncio.Event()

    async def weather() -> None:
        while not stop.is_set():
            set_mode(rng.choice(modes))
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.25)
            # Otherwise one failure would keep the engine out of nearly the whole run.
            made.breakers["edge"].success()

    async def one(number: int) -> None:
        nonlocal slowest
        text = f"Request number {rng.randrange(requests)}."
        started = time.monotonic()
        kind, silence = "audio", None
        try:
            if number % 10 == 0:
                async with asyncio.timeout(rng.uniform(0.01, 0.3)):
                    await made.synthesize_for_pam(text + " abandoned")
                kind = "abandoned too late"
            elif number % 4 == 0:
                result = await asyncio.wait_for(collect(await made.synthesize_for_pam(text, stream=True)), 30)
                silence = result["silence_s"]
                kind = "audio" if result["segments"] else "text" if result["last"].get("text_response") else "nothing"
            else:
                answer = await asyncio.wait_for(made.synthesize_for_pam(text, user_id=str(number)), 30)
                kind = "audio" if answer.audio_data else "text" if answer.success else "nothing"
        except TimeoutError:
            kind = "abandoned" if number % 10 == 0 else "hang"
        kinds[kind] = kinds.get(kind, 0) + 1
        if number % 10:
            # Of a stream: the longest wait for anything, as a long text takes its time.
            slowest = max(slowest, time.monotonic() - started if silence is None else silence)

    task = asyncio.ensure_future(weather())
    gate = asyncio.Semaphore(16)

    async def gated(number: int) -> None:
        async with gate:
            await one(number)

    await asyncio.gather(*(gated(number) for number in range(requests)))
    stop.set()
    await task
    set_mode("ok")
    speaking = app("services.tts.tts_service")

    end = time.monotonic() + 15
    while (speaking.ATTEMPTS or made._flights or resources()["children"]) and time.monotonic() < end:
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)  # cancelled readers finish their second cancellation
    after = resources()
    await made.shutdown()
    return {
        "kinds": kinds,
        "slowest": slowest,
        "before": before,
        "after": after,
        "usage": made._usage,
        "fallbacks": made.fallbacks,
    }


async def corpus(texts: t.Sequence[str]) -> t.Any:
    """The digest of the sound of every text; None where it was refused."""
    FallbackTTSService = app("services.tts.fallback_tts").FallbackTTSService

    made = FallbackTTSService()
    found = []
    for text in texts:
        answer = await made.synthesize_speech(text)
        data = answer["audio_data"]
        found.append(
            {
                "sha": hashlib.sha256(data).hexdigest() if data else None,
                "engine": answer["engine"],
                "kind": answer.get("error_kind"),
            }
        )
    return found


async def fallback(text: str) -> t.Any:
    """The local service by itself, and the engine that the managers use."""
    base, local = app("services.tts.base_tts"), app("services.tts.fallback_tts")
    TTSRequest, VoiceProfile, SystemTTS, fallback_tts_service = (
        base.TTSRequest,
        base.VoiceProfile,
        local.SystemTTS,
        local.fallback_tts_service,
    )

    started = await fallback_tts_service.initialize()
    again = await fallback_tts_service.initialize()
    answer = await fallback_tts_service.synthesize_speech(text, user_id="u")
    engine = SystemTTS()
    ready = await engine.initialize()
    response = await engine.synthesize(TTSRequest(text, VoiceProfile("v", "v", "male", "adult", "")))
    health = await engine.health_check()
    chunks = []
    if ready:
        chunks = [
            len(chunk.data)
            async for chunk in engine.synthesize_stream(TTSRequest(text, VoiceProfile("v", "v", "male", "adult", "")))
        ]
    await fallback_tts_service.shutdown()
    answer = {**answer, "audio_data": len(answer["audio_data"]) if answer["audio_data"] else None}
    return {
        "started": [started, again],
        "engines": fallback_tts_service.available_engines,
        "answer": answer,
        "ready": ready,
        "response": shown(response),
        "health": health,
        "chunks": chunks,
        "available": engine.is_available(),
    }


async def cancelled() -> t.Any:
    """A request that its caller abandons while the engine hangs, and one that runs into the time limit."""
    fallback_tts = app("services.tts.fallback_tts")

    made = fallback_tts.FallbackTTSService()
    await made.initialize()
    # On a busy machine its time would be over before the engine ran.
    fallback_tts.TIME_LIMIT = 300.0
    marker = Path(os.environ["TMPDIR"], "started")
    task = asyncio.ensure_future(made.speak("Nobody waits for this."))
    while not marker.exists():
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    fallback_tts.TIME_LIMIT = 0.3
    try:
        await fallback_tts.speak_with(made.programs[0], "Late.", fallback_tts.Voice(), limit=0.3)
        kind = "spoke"
    except fallback_tts.SpeechError as error:
        kind = error.kind
    return {"cancelled": task.cancelled(), "kind": kind, **resources()}


async def installed_later() -> t.Any:
    """No engine at first; then one appears. Probes come at the speed of the test."""
    app("services.tts.tts_service").PROBE_FIRST = 0.2
    real = os.environ["PATH"]
    os.environ["PATH"] = "/nonexistent"
    made = await service()
    made.breakers["system"].pause = 0.2
    first = shown(await made.synthesize_for_pam("Can you hear me?"))
    status = await made.get_service_status()
    os.environ["PATH"] = real
    made.breakers["system"].pause = 0.2
    made._wake["system"].set()
    end = time.monotonic() + 15
    while made.breakers["system"].state != "closed" and time.monotonic() < end:
        await asyncio.sleep(0.02)
    second = shown(await made.synthesize_for_pam("Can you hear me?"))
    await made.shutdown()
    return {"first": first, "status": status["status"], "second": second}


async def start_time() -> t.Any:
    """How long the service takes to start, and whether its probe was still waiting then."""
    TTSService = app("services.tts.tts_service").TTSService

    app("core.config").get_settings()  # as a backend has done long before
    made = TTSService()
    started = time.monotonic()
    ready = await made.initialize()
    seconds = time.monotonic() - started
    await asyncio.sleep(0.5)
    waiting = not made._probes["edge"].done() and made.breakers["edge"].proven is None
    answer = shown(await made.synthesize_for_pam("Here I am."))
    await made.shutdown()
    return {"ready": ready, "seconds": seconds, "waiting": waiting, "answer": answer}


async def surface() -> t.Any:
    """Everything that the callers of the service use."""
    module = app("services.tts.tts_service")
    TTSService, tts_service = module.TTSService, module.tts_service

    early = await TTSService().get_service_status()
    nothing = await TTSService().synthesize_for_pam("Too early.")
    made = await service()
    status = await made.get_service_status()
    voices = await made.get_available_voices(user_id="u")
    preferred = await made.set_user_voice_preference(
        "u", {"voice_id": "en-GB-RyanNeural", "gender": "male"}, context=None, is_default=True
    )
    profile = made._voice(None, "u", "general_conversation")
    rated = await made.rate_voice("u", {"voice_id": "en-GB-RyanNeural"}, 4.5, feedback="good")
    analytics = await made.get_user_analytics("u")
    answer = shown(
        await made.synthesize_for_pam(
            text="All of it.", user_id="u", context="general_conversation", voice_preference=None, stream=False
        )
    )
    cleared = await made.clear_cache()
    streaming = made.streaming_service is not None
    await made.shutdown()
    off = await made.get_service_status()
    return {
        "early": early,
        "nothing": nothing,
        "status": status,
        "voices": voices,
        "preferred": preferred,
        "voice": [profile.voice_id, profile.gender],
        "rated": rated,
        "analytics": analytics,
        "answer": answer,
        "cleared": cleared,
        "streaming": streaming,
        "off": off["status"],
        "is": isinstance(tts_service, TTSService),
    }


async def disk_cache() -> t.Any:
    """Two services, one after the other, with one directory."""
    first = await service()
    one = shown(await first.synthesize_for_pam("Kept on disk."))
    await asyncio.sleep(0.2)
    await first.shutdown()
    second = await service()
    two = shown(await second.synthesize_for_pam("Kept on disk."))
    usage = dict(second.breakers["system"].health())
    cleared = await second.clear_cache()
    await second.shutdown()
    directory = Path(os.environ["TTS_CACHE_DIR"])
    return {
        "one": one,
        "two": two,
        "successes": usage["successes"],
        "cleared": cleared,
        "left": len(list(directory.iterdir())),
        "mode": oct(directory.stat().st_mode & 0o777),
    }


async def pure() -> t.Any:
    """Functions without any engine."""
    fallback_tts, tts_service = app("services.tts.fallback_tts"), app("services.tts.tts_service")

    long_text = "One sentence here. " * 200
    parts = tts_service.segments(long_text, 300)
    broken = {}
    for name, data in {
        "empty": b"",
        "html": b"<html>",
        "header only": b"RIFF\0\0\0\0WAVE",
        "no data": b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0" + b"\0" * 16,
    }.items():
        try:
            fallback_tts.wav_with_sizes(data)
            broken[name] = "passed"
        except fallback_tts.SpeechError as error:
            broken[name] = error.kind
    return {
        "parts": [len(part) for part in parts],
        "joined": " ".join(parts) == long_text.strip(),
        "endings": {part[-1] for part in parts} == {"."},
        "word": [len(part) for part in tts_service.segments("x" * 2500)],
        "broken": broken,
        "genders": [
            tts_service.gender_of(name) for name in ("en-US-AriaNeural", "en-US-GuyNeural", "de-DE-ConradNeural")
        ],
        "voices": [
            tts_service.edge_voice(fallback_tts.Voice("de-AT", "male")),
            tts_service.edge_voice(fallback_tts.Voice("xx", "female")),
            tts_service.edge_voice(fallback_tts.Voice(), "en-GB-RyanNeural"),
            tts_service.edge_voice(fallback_tts.Voice(), "evil' onload='x"),
        ],
        "espeak": [
            fallback_tts.espeak_voice(fallback_tts.Voice(language, "male"))
            for language in ("en-US", "de_DE", "../../etc/passwd", "-f", "pt-BR")
        ],
        "asked": [
            fallback_tts.espeak_voice(
                fallback_tts.Voice(language),
                fallback_tts.espeak_languages(
                    "Pty Language       Age/Gender VoiceName          File                 Other Languages\n"
                    " 5  cmn             --/M      Chinese_(Mandarin) sit/cmn              (zh-cmn 5)(zh 5)\n"
                    " 5  zh              --/M      chinese-mb-cn1     mb/mb-cn1\n"
                    " 5  nb              --/M      Norwegian_Bokmål  gmq/nb               (no 5)\n"
                ),
            )
            for language in ("zh-TW", "no-NO", "nb", "th-TH")
        ],
    }


def percentile(values: t.Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def first_audio(modes: t.Sequence[str], each: int, keep_open: bool = False) -> t.Any:
    """The 99th percentile of the time to the first audio in ms: per request another text, and a breaker that knows
    nothing (or is open).
    """
    set_mode("ok")
    made = await service()
    times: t.List[float] = []
    for mode in modes:
        set_mode(mode)
        for number in range(each):
            edge = made.breakers["edge"]
            edge.state, edge.row = ("open", {}) if keep_open else ("closed", {})
            found = await collect(await made.synthesize_for_pam(f"Sentence {number} during {mode}.", stream=True))
            assert found["segments"], mode
            times.append(1000 * found["first_s"])
    await made.shutdown()
    return {"p99": percentile(times, 0.99), "p50": percentile(times, 0.5), "count": len(times)}


async def naive_first_audio(modes: t.Sequence[str], cut_off: float) -> t.Any:
    """edge-tts by itself, cut off: what never came counts as the cut-off."""
    import edge_tts  # only in the backend's environment

    times = []
    for mode in modes:
        set_mode(mode)
        started = time.monotonic()
        seconds = cut_off

        async def first() -> bool:
            async for item in edge_tts.Communicate("One sentence.", proxy=os.environ["TTS_EDGE_PROXY"]).stream():
                if item["type"] == "audio":
                    return True
            return False

        task = asyncio.ensure_future(first())
        await asyncio.wait({task}, timeout=cut_off)
        if task.done() and not task.exception() and task.result():
            seconds = time.monotonic() - started
        elif not task.done():
            task.cancel()
            await asyncio.sleep(0)
            task.cancel()
        times.append(1000 * seconds)
    return {"p99": percentile(times, 0.99)}


async def naive_start(cut_off: float) -> t.Any:
    """A start that proves its engine by synthesis and waits for it, as the incident's service did."""
    import edge_tts  # only in the backend's environment

    started = time.monotonic()

    async def prove() -> None:
        async for _ in edge_tts.Communicate("Test", proxy=os.environ["TTS_EDGE_PROXY"]).stream():
            pass

    task = asyncio.ensure_future(prove())
    await asyncio.wait({task}, timeout=cut_off)
    task.cancel()
    return {"seconds": time.monotonic() - started}


async def cache_hit(times: int, by_hand: int = 10) -> t.Any:
    """Milliseconds of a request that the cache answers, and of one espeak-ng run for the same words."""
    made = await service()
    text = "Turn left in two hundred metres, then keep right."
    await made.synthesize_for_pam(text)
    hits = []
    for _ in range(times):
        started = time.perf_counter()
        answer = await made.synthesize_for_pam(text)
        hits.append(1000 * (time.perf_counter() - started))
        assert answer.cache_hit
    runs = []
    for _ in range(by_hand):
        started = time.perf_counter()
        process = await asyncio.create_subprocess_exec("espeak-ng", "--stdin", "--stdout", stdin=-1, stdout=-1)
        await process.communicate(text.encode())
        runs.append(1000 * (time.perf_counter() - started))
    await made.shutdown()
    return {
        "p50": percentile(hits, 0.5),
        "p99": percentile(hits, 0.99),
        "espeak": percentile(runs, 0.5),
        "espeak_p99": percentile(runs, 0.99),
    }


def main() -> None:
    sys.path.insert(0, sys.argv[1])
    patience = float(os.environ["TTS_TEST_PATIENCE"])
    if patience != 1:  # what is measured imports for itself
        be_patient(patience)
    result = asyncio.run(globals()[sys.argv[2]](**json.loads(sys.argv[3])))
    sys.stdout.write(json.dumps(result, default=str) + "\n")


if __name__ == "__main__":
    main()
