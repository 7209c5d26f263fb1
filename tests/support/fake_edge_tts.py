# SPDX-License-Identifier: GPL-3.0-or-later
"""A local endpoint that speaks the protocol of Edge's speech service. It proves our code against the protocol, not
against Microsoft.

The client is the unchanged library edge-tts: it believes to talk to ``speech.platform.bing.com`` through a CONNECT
proxy (its public ``proxy`` argument), with TLS on. The endpoint's certificate is for that name, from a certificate
authority of this test, which alone is added to what the client trusts. What is spoken is real speech in the service's
own format (24 kHz, 48 kbit/s, mono MP3): espeak-ng through lame. ``python tests/support/fake_edge_tts.py DIRECTORY``
runs it; it writes ``ready.json`` there and reads its fault mode from the file ``mode``, at every connection anew.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import re
import ssl
import struct
import subprocess
import sys
import typing as t
from html import unescape
from pathlib import Path

HOST = "speech.platform.bing.com"
#: Twelve ways to fail, in the order of a connection's life; ``ok`` is none of them.
FAULTS: t.Tuple[str, ...] = (
    "refused",
    "proxy_error",
    "black_hole",
    "tls_silent",
    "tls_garbage",
    "no_upgrade",
    "forbidden",
    "unavailable",
    "silent",
    "no_audio",
    "garbage",
    "drop",
)
#: Beside them: audio begins and then stops coming, or comes too slowly to be worth waiting for.
LATE_FAULTS: t.Tuple[str, ...] = ("stall", "drip")
MODES: t.Tuple[str, ...] = ("ok", "slow_ok", *FAULTS, *LATE_FAULTS)
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def make_certificates(directory: Path) -> None:
    """``ca.pem``, ``key.pem`` and ``cert.pem`` for the service's real name, by openssl."""
    (directory / "san.cnf").write_text(f"subjectAltName=DNS:{HOST}\n")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    commands = [
        [
            "req",
            "-x509",
            *key,
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
            "-days",
            "2",
            "-subj",
            "/CN=wheels.ops test CA",
            "-addext",
            "keyUsage=critical,keyCertSign,cRLSign",
        ],
        ["req", *key, "-keyout", "key.pem", "-out", "req.pem", "-subj", f"/CN={HOST}"],
        [
            "x509",
            "-req",
            "-in",
            "req.pem",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            "san.cnf",
            "-out",
            "cert.pem",
        ],
    ]
    for words in commands:
        subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True)


def speech(text: str) -> bytes:
    """The text as the service would send it."""
    wav = subprocess.run(
        ["espeak-ng", "--stdin", "--stdout", "-b", "1"], input=text.encode(), capture_output=True, check=True
    ).stdout
    body = len(wav) - 44
    wav = wav[:4] + struct.pack("<I", 36 + body) + wav[8:40] + struct.pack("<I", body) + wav[44:]
    words = ["lame", "--quiet", "-t", "-m", "m", "--resample", "24", "--cbr", "-b", "48", "-", "-"]
    return subprocess.run(words, input=wav, capture_output=True, check=True).stdout


class Endpoint:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.speech: t.Dict[str, bytes] = {}
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
        self.lock = asyncio.Lock()
        self.tls_port = 0

    @property
    def mode(self) -> str:
        with contextlib.suppress(OSError):
            return (self.directory / "mode").read_text().strip() or "ok"
        return "ok"

    def note(self, **facts: t.Any) -> None:
        with open(self.directory / "seen.jsonl", "a") as file:
            file.write(json.dumps(facts) + "\n")

    async def proxy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """CONNECT, then bytes both ways. Where the fault lies before TLS it is played here."""
        mode = self.mode
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.note(event="connect", target=head.split(b" ")[1].decode(), mode=mode)
            if mode == "refused":
                writer.transport.abort()
                return
            if mode == "proxy_error":
                writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
                await writer.drain()
                return
            if mode == "black_hole":
                await reader.read()
                return
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await writer.drain()
            if mode == "tls_silent":
                await reader.read()
                return
            if mode == "tls_garbage":
                writer.write(b"this is not TLS\r\n" * 10)
                await writer.drain()
                return
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self.tls_port)
            await asyncio.gather(self._pipe(reader, inner_writer), self._pipe(inner_reader, writer))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    @staticmethod
    async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while True:
                data = await reader.read(65536)
                if not data:
                    break
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError):
            writer.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mode = self.mode
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            if mode == "no_upgrade":
                await reader.read()
                return
            if mode in ("forbidden", "unavailable"):
                status = b"403 Forbidden" if mode == "forbidden" else b"503 Service Unavailable"
                writer.write(
                    b"HTTP/1.1 "
                    + status
                    + b"\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                )
                await writer.drain()
                return
            key = next(
                line.split(":", 1)[1].strip()
                for line in head.split("\r\n")
                if line.lower().startswith("sec-websocket-key")
            )
            accept = base64.b64encode(hashlib.sha1(key.encode() + _GUID).digest())
            writer.write(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection:"
                b" Upgrade\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n"
            )
            await writer.drain()
            if mode == "silent":
                await reader.read()
                return
            ssml, boundary = "", "SentenceBoundary"
            while not ssml:
                message = (await self.receive(reader)).decode("utf-8", "replace")
                if re.search(
                    r'"wordBoundaryEnabled":\s*"?true', message
                ):  # the older clients know no other, and ask for it
                    boundary = "WordBoundary"
                if "Path:ssml" in message:
                    ssml = message.split("\r\n\r\n", 1)[1]
            await self.answer(writer, reader, ssml, mode, boundary)
        except (OSError, asyncio.IncompleteReadError, StopIteration):
            pass
        finally:
            with contextlib.suppress(OSError):
                writer.close()

    async def receive(self, reader: asyncio.StreamReader) -> bytes:
        """One message of the client: masked, never fragmented by aiohttp."""
        first, second = await reader.readexactly(2)
        length = second & 127
        if length == 126:
            length = struct.unpack(">H", await reader.readexactly(2))[0]
        elif length == 127:
            length = struct.unpack(">Q", await reader.readexactly(8))[0]
        mask = await reader.readexactly(4)
        body = bytes(byte ^ mask[index % 4] for index, byte in enumerate(await reader.readexactly(length)))
        if first & 15 == 8:
            raise asyncio.IncompleteReadError(b"", None)
        return body

    @staticmethod
    def frame(opcode: int, body: bytes) -> bytes:
        if len(body) < 126:
            head = struct.pack(">BB", 0x80 | opcode, len(body))
        elif len(body) < 65536:
            head = struct.pack(">BBH", 0x80 | opcode, 126, len(body))
        else:
            head = struct.pack(">BBQ", 0x80 | opcode, 127, len(body))
        return head + body

    async def answer(
        self, writer: asyncio.StreamWriter, reader: asyncio.StreamReader, ssml: str, mode: str, boundary: str
    ) -> None:
        inner = unescape(ssml.split("<prosody", 1)[1].split(">", 1)[1].rsplit("</prosody>", 1)[0])
        voice = ssml.split("<voice name='", 1)[1].split("'", 1)[0]
        self.note(event="ssml", text=inner, voice=voice, mode=mode)

        def text(path: str, body: str = "{}") -> bytes:
            return self.frame(
                1,
                f"X-RequestId:0\r\nContent-Type:application/json; charset=utf-8\r\nPath:{path}\r\n\r\n{body}".encode(),
            )

        def audio(data: bytes) -> bytes:
            head = b"X-RequestId:0\r\nContent-Type:audio/mpeg\r\nX-StreamId:0\r\nPath:audio\r\n"
            return self.frame(2, struct.pack(">H", len(head)) + head + data)

        async def send(*frames: bytes) -> None:
            for frame in frames:
                writer.write(frame)
            await writer.drain()

        await send(text("turn.start"), text("response"))
        if mode == "drop":
            writer.transport.abort()
            return
        if mode == "garbage":
            await send(self.frame(2, b"\xff\xff garbage"))
            return
        if mode == "no_audio":
            await send(text("turn.end"))
            return
        if mode == "slow_ok":
            await asyncio.sleep(0.7)
        key = f"{voice} {inner}"
        if key not in self.speech:
            self.speech[key] = await asyncio.to_thread(speech, inner)
        data = self.speech[key]
        await send(audio(data[:1440]), audio(data[1440:2880]))
        if mode == "stall":
            await reader.read()
            return
        for start in range(2880, len(data), 1440):
            if mode == "drip":
                await asyncio.sleep(0.9)
            await send(audio(data[start : start + 1440]))
        head = b"X-RequestId:0\r\nPath:audio\r\n"
        ticks = len(data) * 8 * 10_000_000 // 48_000
        metadata = {
            "Metadata": [
                {
                    "Type": boundary,
                    "Data": {
                        "Offset": 0,
                        "Duration": ticks,
                        "text": {"Text": inner, "Length": len(inner), "BoundaryType": boundary},
                    },
                }
            ]
        }
        await send(
            text("audio.metadata", json.dumps(metadata)),
            self.frame(2, struct.pack(">H", len(head)) + head),
            text("turn.end"),
        )
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(reader.read(2), 2)  # the client's close frame
            await send(self.frame(8, b"\x03\xe8"))


async def main(directory: Path) -> None:
    make_certificates(directory)
    endpoint = Endpoint(directory)
    tls = await asyncio.start_server(endpoint.serve, "127.0.0.1", 0, ssl=endpoint.context)
    endpoint.tls_port = tls.sockets[0].getsockname()[1]
    proxy = await asyncio.start_server(endpoint.proxy, "127.0.0.1", 0)
    ready = {
        "proxy": f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}",
        "ca": str(directory / "ca.pem"),
        "pid": os.getpid(),
    }
    (directory / "ready.part").write_text(json.dumps(ready))
    (directory / "ready.part").rename(directory / "ready.json")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
