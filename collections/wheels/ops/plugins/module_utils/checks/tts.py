# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Speech: does the backend make audio, and with which engine."""

from __future__ import annotations

import typing as t

from ..core.results import OpsError
from ..health.check import Check, is_ours
from ..host.audio import describe
from .context import HostContext, Options
from .http import require_url, unresolved

#: Less than a tenth of a second of the poorest format that the chain makes (48 kbit/s): a header and nothing after it.
MIN_AUDIO = 600


def check(
    base_url: str,
    *,
    path: str = "/api/v1/tts/test",
    token: str = "",
    timeout: float = 20.0,
    verify: t.Union[bool, str] = True,
) -> Check:
    """Lets the backend speak. The value is the number of bytes of audio.

    Without ``token`` its own test route is asked, which tells the engine and the size; with one (a user's bearer token)
    the audio itself is fetched from ``/api/v1/tts/synthesize`` and looked into. Critical: no audio. A fallback that
    speaks is ok, as that is what the chain is for; the message names the engine.
    """
    import requests

    route = "/api/v1/tts/synthesize" if token else path
    require_url(base_url, route)
    try:
        with requests.Session() as session:
            session.trust_env = False  # a proxy of the environment must not answer for the backend
            session.verify = verify
            if token:
                words = {"text": "The speech engines work."}
                answer = session.post(
                    base_url + route, json=words, headers={"Authorization": f"Bearer {token}"}, timeout=timeout
                )
            else:
                answer = session.get(base_url + route, timeout=timeout)
    except requests.Timeout:
        message = f"{route} gave no answer within {timeout:g} s"
        if _answers(base_url, verify):
            return _silent(f"{message}.", {"path": route})
        return _silent(f"{message}, nor does the backend give any other.", {"path": route}, remedy="service_restart")
    except requests.RequestException as error:
        if is_ours(error):
            raise unresolved(base_url) from None
        return _silent(
            f"{base_url} does not answer: {type(error).__name__}; the http check says more.",
            {"path": route},
            remedy="service_restart",
        )
    if answer.status_code in (404, 405):
        raise OpsError(
            f"{route} is not there ({answer.status_code}).", hint="Name the route of the speech test.", path=route
        )
    if answer.status_code in (401, 403, 429):
        raise OpsError(
            f"{route} refuses us ({answer.status_code}).", hint="Give a valid token, or ask less often.", path=route
        )
    if token:
        return _heard(answer, route)
    try:
        facts = answer.json()
    except ValueError:
        facts = {}
    if not isinstance(facts, dict) or answer.status_code >= 400:
        return _silent(f"{route} answers {answer.status_code}.", {"path": route})
    size = facts.get("audio_size_bytes")
    engine = str(facts.get("engine_used") or "none")
    details = {
        "path": route,
        "engine": engine,
        "generation_time_ms": facts.get("generation_time_ms"),
        "audio_bytes": size,
    }
    if facts.get("status") != "healthy" or not isinstance(size, int) or size < MIN_AUDIO:
        return _silent(
            "The backend makes no audio:"
            f" {str(facts.get('message') or facts.get('status') or 'no reason given')[:200]}.",
            details,
        )
    return Check(
        name="tts",
        status="ok",
        value=size,
        unit="bytes of audio",
        message=f"Speech works: engine {engine}, {size} bytes.",
        details=details,
    )


def _answers(base_url: str, verify: t.Any) -> bool:
    """Whether the backend answers anything at all: if not, its speech engines are not at fault."""
    import requests

    try:
        with requests.Session() as session:
            session.trust_env = False
            session.verify = verify
            session.get(base_url, timeout=5, allow_redirects=False, stream=True)
    except requests.RequestException:
        return False
    return True


def _heard(answer: t.Any, route: str) -> Check:
    engine = answer.headers.get("X-TTS-Engine", "unknown")
    details: t.Dict[str, t.Any] = {
        "path": route,
        "engine": engine,
        "content_type": answer.headers.get("Content-Type", ""),
    }
    if answer.status_code >= 400:
        return _silent(f"{route} answers {answer.status_code}.", details)
    try:
        details.update(describe(answer.content))
    except OpsError as error:
        return _silent(f"What {route} gives is no audio: {error.message}", details)
    if details["format"] not in details["content_type"].replace("mpeg", "mp3"):
        return _silent(f"{route} calls {details['format']} audio {details['content_type']}.", details)
    return Check(
        name="tts",
        status="ok",
        value=len(answer.content),
        unit="bytes of audio",
        message=f"Speech works: engine {engine}, {details['duration_ms']} ms of {details['format']}.",
        details=details,
    )


def _silent(message: str, details: t.Dict[str, t.Any], remedy: str = "tts_engine") -> Check:
    return Check(
        name="tts", status="critical", value=0, unit="bytes of audio", message=message, remedy=remedy, details=details
    )


def measure(_context: HostContext, options: Options) -> Check:
    return check(options.base_url, path=options.tts_path)
