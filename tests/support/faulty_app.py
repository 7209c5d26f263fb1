# SPDX-License-Identifier: GPL-3.0-or-later
"""A web service that starts in one of the ways in which services start wrongly: ``python faulty_app.py PORT
MODE_FILE``.

``/`` says whether it lives, ``/readyz`` whether it is ready; the mode is read once, at the start. Standard library
only.
"""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

MODES = ("exit", "hang", "error", "dependency", "wrong_port", "dies", "stale", "slow")


class Handler(http.server.BaseHTTPRequestHandler):
    mode = "healthy"
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.mode == "slow":
            time.sleep(60)
        code = 500 if self.mode == "error" else 503 if self.mode == "dependency" and self.path == "/readyz" else 200
        body = json.dumps({"status": "pass" if code == 200 else "fail", "pid": os.getpid()}).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
        return


class Server(http.server.ThreadingHTTPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


def serve(port: int) -> None:
    Server(("127.0.0.1", port), Handler).serve_forever()


def main() -> None:
    port, mode = int(sys.argv[1]), Path(sys.argv[2]).read_text().strip()
    print(f"starting as {mode}", flush=True)
    Handler.mode = mode
    if mode == "exit":
        sys.exit("cannot start: DATABASE_URL is not set")
    if mode == "hang":
        threading.Event().wait()
    if mode == "wrong_port":
        serve(0)
    if mode == "dies":
        threading.Timer(1.5, os._exit, [1]).start()
    if mode == "stale":
        # Somebody else holds the port and answers; we run, and cannot serve.
        try:
            serve(port)
        except OSError as error:
            print(f"cannot listen: {error}", flush=True)
            threading.Event().wait()
    if mode == "leave_behind":
        # What the next start finds on its port: a process that is no longer of the service.
        subprocess.Popen([sys.executable, __file__, str(port), sys.argv[2] + ".healthy"], start_new_session=True)
        threading.Event().wait()
    serve(port)


if __name__ == "__main__":
    main()
