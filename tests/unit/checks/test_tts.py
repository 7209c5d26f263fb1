# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the backend speaks, as its own test route says and as its audio shows."""

from __future__ import annotations

import io
import json
import socket
import typing as t
import wave

import pytest
import requests

from tests.support import transport
from wheels_ops.checks import tts
from wheels_ops.core.results import OpsError
from wheels_ops.health.check import Check

URL = "http://backend:8000"
HEALTHY: t.Dict[str, t.Any] = {
    "status": "healthy",
    "engine_used": "edge",
    "audio_size_bytes": 600,
    "generation_time_ms": 31,
}


def _wav(milliseconds: int = 500) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(b"\1\2" * (8 * milliseconds))
    return file.getvalue()


#: Three frames of layer III, 48 kbit/s and 24 kHz (MPEG 2): 144 bytes and 24 ms each.
MP3 = (b"\xff\xf3\x64\xc4" + bytes(140)) * 3


def _answered(
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    body: t.Any,
    headers: t.Optional[t.Dict[str, str]] = None,
    **options: t.Any,
) -> t.Tuple[Check, t.Dict[str, t.Any]]:
    sent = transport.answer(monkeypatch, lambda request: (status, body, headers or {}))
    check = tts.check(URL, **options)
    assert len(sent) == 1
    return check, sent[0]


def _is_silent(check: Check, words: str, remedy: str = "tts_engine") -> None:
    assert (check.name, check.status, check.value, check.unit, check.remedy) == (
        "tts",
        "critical",
        0,
        "bytes of audio",
        remedy,
    )
    assert words in check.message, check.message


def test_a_backend_that_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    check, sent = _answered(monkeypatch, 200, HEALTHY)
    assert (check.name, check.status, check.value, check.unit, check.remedy) == ("tts", "ok", 600, "bytes of audio", "")
    assert check.message == "Speech works: engine edge, 600 bytes."
    assert check.details == {"path": "/api/v1/tts/test", "engine": "edge", "generation_time_ms": 31, "audio_bytes": 600}
    assert (sent["request"].method, sent["request"].url) == ("GET", f"{URL}/api/v1/tts/test")
    assert sent["verify"] is True and "http" not in sent["proxies"]


def test_route_and_certificates_as_they_were_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check, sent = _answered(monkeypatch, 200, HEALTHY, path="/speak", verify="/ca.pem", timeout=3)
    assert check.details["path"] == "/speak"
    assert (sent["request"].url, sent["verify"], sent["timeout"]) == (f"{URL}/speak", "/ca.pem", 3)


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"status": "degraded"}, "no audio: degraded."),
        ({"status": "degraded", "message": "No engine."}, "no audio: No engine.."),
        ({"audio_size_bytes": 599}, "no audio: healthy."),
        ({"audio_size_bytes": "9000"}, "no audio: healthy."),
        ({"audio_size_bytes": None}, "no audio: healthy."),
        ({"status": None}, "no audio: no reason given."),
        ({"status": "x" * 300}, f"no audio: {'x' * 200}."),
    ],
)
def test_a_backend_without_audio(monkeypatch: pytest.MonkeyPatch, facts: t.Dict[str, t.Any], words: str) -> None:
    check, _sent = _answered(monkeypatch, 200, {**HEALTHY, **facts})
    _is_silent(check, words)
    assert check.details["path"] == "/api/v1/tts/test" and check.details["engine"] == "edge"


def test_no_engine_is_called_none(monkeypatch: pytest.MonkeyPatch) -> None:
    check, _sent = _answered(monkeypatch, 200, {"status": "failed"})
    assert check.details == {
        "path": "/api/v1/tts/test",
        "engine": "none",
        "generation_time_ms": None,
        "audio_bytes": None,
    }


@pytest.mark.parametrize(("status", "body"), [(200, []), (200, "7"), (400, HEALTHY), (500, HEALTHY), (503, "")])
def test_an_answer_that_is_no_report(monkeypatch: pytest.MonkeyPatch, status: int, body: t.Any) -> None:
    check, _sent = _answered(monkeypatch, status, body)
    _is_silent(check, f"/api/v1/tts/test answers {status}.")
    assert check.details == {"path": "/api/v1/tts/test"}


@pytest.mark.parametrize("body", ["speech", b"", {}])
def test_an_answer_that_reports_nothing(monkeypatch: pytest.MonkeyPatch, body: t.Any) -> None:
    check, _sent = _answered(monkeypatch, 200, body)
    _is_silent(check, "no audio: no reason given.")


@pytest.mark.parametrize(
    ("status", "complaint"),
    [(404, "not there"), (405, "not there"), (401, "refuses us"), (403, "refuses us"), (429, "refuses us")],
)
@pytest.mark.parametrize(("token", "route"), [("", "/api/v1/tts/test"), ("t0ken", "/api/v1/tts/synthesize")])
def test_a_route_that_is_not_ours_to_ask(
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    complaint: str,
    token: str,
    route: str,
) -> None:
    with pytest.raises(OpsError, match=f"{route} .*{complaint}.*{status}") as caught:
        _answered(monkeypatch, status, HEALTHY, token=token)
    assert caught.value.details == {"path": route}


def test_no_answer_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def respond(request: requests.PreparedRequest) -> transport.Answer:
        if (request.url or "").endswith("/tts/test"):
            raise requests.ReadTimeout
        return 404, {}, {}

    transport.answer(monkeypatch, respond)
    check = tts.check(URL, timeout=1.5)
    _is_silent(check, "/api/v1/tts/test gave no answer within 1.5 s.")
    assert check.details == {"path": "/api/v1/tts/test"}


def test_a_backend_that_hangs_as_a_whole_needs_no_speech_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def respond(request: requests.PreparedRequest) -> transport.Answer:
        raise requests.ReadTimeout

    transport.answer(monkeypatch, respond)
    words = "/api/v1/tts/test gave no answer within 1.5 s, nor does the backend give any other."
    _is_silent(tts.check(URL, timeout=1.5), words, "service_restart")


def test_a_backend_that_does_not_answer_needs_another_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def respond(request: requests.PreparedRequest) -> transport.Answer:
        raise requests.ConnectionError("refused")

    transport.answer(monkeypatch, respond)
    check = tts.check(URL)
    _is_silent(check, f"{URL} does not answer: ConnectionError", remedy="service_restart")
    assert check.details == {"path": "/api/v1/tts/test"}


def test_a_name_that_does_not_resolve_says_nothing_of_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    def respond(request: requests.PreparedRequest) -> transport.Answer:
        raise requests.ConnectionError(socket.gaierror(-2, "Name or service not known"))

    transport.answer(monkeypatch, respond)
    with pytest.raises(OpsError, match="does not resolve"):
        tts.check(URL)


def test_an_address_that_is_none_is_refused() -> None:
    with pytest.raises(OpsError):
        tts.check("backend:8000")


@pytest.mark.parametrize(
    ("audio", "kind", "codec", "milliseconds"),
    [
        (_wav(), "audio/wav", "wav", 500),
        (_wav(), "audio/x-wav", "wav", 500),
        (MP3, "audio/mpeg", "mp3", 72),
        (MP3, "audio/mp3", "mp3", 72),
    ],
)
def test_with_a_token_the_audio_itself_is_heard(
    monkeypatch: pytest.MonkeyPatch,
    audio: bytes,
    kind: str,
    codec: str,
    milliseconds: int,
) -> None:
    check, sent = _answered(
        monkeypatch,
        200,
        audio,
        {"Content-Type": kind, "X-TTS-Engine": "system"},
        token="t0ken",
        verify=False,
    )
    assert (check.name, check.status, check.value, check.unit, check.remedy) == (
        "tts",
        "ok",
        len(audio),
        "bytes of audio",
        "",
    )
    assert check.message == f"Speech works: engine system, {milliseconds} ms of {codec}."
    assert (check.details["path"], check.details["engine"], check.details["content_type"]) == (
        "/api/v1/tts/synthesize",
        "system",
        kind,
    )
    assert (check.details["format"], check.details["duration_ms"]) == (codec, milliseconds)
    request = sent["request"]
    assert (request.method, request.url, sent["verify"]) == ("POST", f"{URL}/api/v1/tts/synthesize", False)
    assert request.headers["Authorization"] == "Bearer t0ken"
    assert json.loads(request.body)["text"]


def test_an_engine_that_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    check, _sent = _answered(monkeypatch, 200, _wav(), {"Content-Type": "audio/wav"}, token="t0ken")
    assert check.details["engine"] == "unknown" and check.status == "ok"


@pytest.mark.parametrize(
    ("status", "audio", "headers", "words"),
    [
        (200, b"<html>", {"Content-Type": "audio/wav"}, "/api/v1/tts/synthesize gives is no audio"),
        (200, _wav(), {}, "calls wav audio"),
        (200, _wav()[:-2], {"Content-Type": "audio/wav"}, "is no audio: truncated WAV"),
        (200, _wav(), {"Content-Type": "audio/mpeg"}, "calls wav audio audio/mpeg"),
        (200, MP3, {"Content-Type": "audio/wav"}, "calls mp3 audio audio/wav"),
        (400, _wav(), {"Content-Type": "audio/wav"}, "answers 400"),
        (500, _wav(), {"Content-Type": "audio/wav"}, "/api/v1/tts/synthesize answers 500"),
    ],
)
def test_with_a_token_what_is_no_audio_is_critical(
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    audio: bytes,
    headers: t.Dict[str, str],
    words: str,
) -> None:
    check, _sent = _answered(monkeypatch, status, audio, {**headers, "X-TTS-Engine": "edge"}, token="t0ken")
    _is_silent(check, words)
    assert (check.details["path"], check.details["engine"]) == ("/api/v1/tts/synthesize", "edge")
    assert check.details["content_type"] == headers.get("Content-Type", "")
