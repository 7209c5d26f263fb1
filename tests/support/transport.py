# SPDX-License-Identifier: GPL-3.0-or-later
"""Answers for requests, without a server: what is sent arrives at a function of the test."""

from __future__ import annotations

import io
import json
import typing as t

import pytest
import requests

#: (status, body, headers): an object is sent as JSON, bytes and text as they are.
Answer = t.Tuple[int, t.Any, t.Dict[str, str]]


def answer(
    monkeypatch: pytest.MonkeyPatch,
    respond: t.Callable[[requests.PreparedRequest], Answer],
) -> t.List[t.Dict[str, t.Any]]:
    """Has ``respond`` answer every request; it may raise instead. Gives the options of each, such as ``timeout``."""
    sent: t.List[t.Dict[str, t.Any]] = []

    def send(
        adapter: requests.adapters.HTTPAdapter,
        request: requests.PreparedRequest,
        **options: t.Any,
    ) -> requests.Response:
        sent.append({**options, "request": request})
        status, body, headers = respond(request)
        response = requests.Response()
        response.status_code = status
        response.request, response.url = request, request.url or ""
        response.headers.update(headers)
        response.raw = io.BytesIO(
            body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode(),
        )
        return response

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", send)
    return sent
