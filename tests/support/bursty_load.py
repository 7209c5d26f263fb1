# SPDX-License-Identifier: GPL-3.0-or-later
"""The bursty load of the incident, seen from outside of the backend: resident memory, the slowest request, the first
audio.

Two users load their history, BURST_MB of rendered messages, every BURST_EVERY seconds; one asks at a steady pace
meanwhile. The same program measures a backend before a deployment and after it. It knows the port, a token and a way to
ask the kernel for memory, and takes nothing from the backend's own word.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import statistics
import threading
import time
import typing as t

#: Seconds of load: long enough for a round of the incident's own monitoring, which comes every 30 s.
SECONDS, BURST_EVERY, BURST_MB = 40.0, 15.0, 120
#: Requests a second of the steady user.
PACE = 50.0
#: Before the deployment no audio comes at all: it is asked for so long.
CUT_OFF = 10.0
USER = "00000000-0000-0000-0000-000000000001"
SENTENCE = "Turn left in two hundred metres, then keep right, sentence number"


def first_audio(port: int, token: str, number: int) -> float:
    """Milliseconds to the first byte of streamed audio; asks again until CUT_OFF where there is none.

    ``number`` makes the sentence new, so that no cache has spoken it before.
    """
    started = time.monotonic()
    body = json.dumps({"text": f"{SENTENCE} {number}."}).encode()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    while time.monotonic() - started < CUT_OFF:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=CUT_OFF)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("POST", "/api/v1/tts/synthesize/stream", body, headers)
            answer = connection.getresponse()
            if answer.status == 200 and answer.read(64)[:4] in (b"RIFF", b"ID3\x03", b"ID3\x04"):
                return 1000 * (time.monotonic() - started)
        time.sleep(0.25)
    return 1000 * CUT_OFF


def bursts_and_pace(
    port: int, token: str, resident: t.Callable[[], float], seconds: float = SECONDS
) -> t.Dict[str, float]:
    """``mean_rss`` and ``peak_rss`` in MB, ``worst`` and ``p95`` in ms, over ``seconds`` of load; ``resident`` gives
    MB.

    A burst that fails, or a steady request that gets another answer than 200, is an error: less work would look like
    less memory.
    """
    end = time.monotonic() + seconds
    memory: t.List[float] = []
    times: t.List[float] = []
    failures: t.List[BaseException] = []

    def bursts() -> None:
        while time.monotonic() < end - 5:
            ask(
                "GET",
                f"/api/v1/pam/history?megabytes={BURST_MB}",
                http.client.HTTPConnection("127.0.0.1", port, timeout=60),
                token,
            )
            time.sleep(BURST_EVERY)

    def watch() -> None:
        while time.monotonic() < end:
            memory.append(resident())
            time.sleep(0.1)

    def steady() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        while time.monotonic() < end:
            started = time.monotonic()
            ask("GET", "/api/v1/pam/chat", connection)
            times.append(time.monotonic() - started)
            time.sleep(max(0.0, 1 / PACE - times[-1]))
        connection.close()

    def noted(work: t.Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=noted, args=(work,)) for work in (bursts, bursts, watch, steady)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return {
        "mean_rss": statistics.mean(memory),
        "peak_rss": max(memory),
        "worst": 1000 * max(times),
        "p95": 1000 * statistics.quantiles(times, n=20)[18],
        "requests": len(times),
    }


def ask(method: str, path: str, connection: http.client.HTTPConnection, token: str = "") -> None:
    """One whole exchange; anything but 200 is an error."""
    connection.request(method, path, headers={"Authorization": f"Bearer {token}"} if token else {})
    answer = connection.getresponse()
    answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{method} {path}: HTTP {answer.status}")
