# SPDX-License-Identifier: GPL-3.0-or-later
"""What a service is, by its command: as managers are told it, and as processes show it."""

from __future__ import annotations

import shlex

import pytest

from wheels_ops.services import recognition
from wheels_ops.services.recognition import API, BEAT, FRONT_END, POSTGRES, REDIS, WORKER


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("/srv/x/venv/bin/uvicorn app.main:app --port 8000", API),
        ("/srv/x/venv/bin/python3 -m uvicorn app.main:app", API),
        ("/srv/x/venv/bin/python /srv/x/venv/bin/gunicorn -k uvicorn.workers.UvicornWorker app.main:app", API),
        ("gunicorn: master [app.main:app]", API),
        ("/usr/bin/poetry run hypercorn app.main:app -b 0.0.0.0:80", API),
        ("/bin/sh -c 'set -a; . /etc/x.env; exec /v/bin/python -m uvicorn app.main:app'", API),
        ("/v/bin/python -m celery -A app.workers.celery worker --loglevel=info", WORKER),
        ("/v/bin/celery -A app worker -B", WORKER),
        ("[celeryd: celery@host:MainProcess] -active- (worker -A app)", WORKER),
        ("/bin/bash -lc 'cd /srv/x && celery -A app beat -s /var/lib/x/schedule'", BEAT),
        ("/usr/bin/env celery -A app beat", BEAT),
        ("/v/bin/celery -A app flower --port=5555", ""),
        ("/usr/bin/redis-server 127.0.0.1:6379", REDIS),
        ("/usr/bin/valkey-server /etc/valkey/valkey.conf", REDIS),
        ("/usr/lib/postgresql/15/bin/postgres -D /var/lib/postgresql/15/main", POSTGRES),
        ("nginx: master process /usr/sbin/nginx -g daemon on;", FRONT_END),
        ("/usr/bin/cloudflared --no-autoupdate tunnel run", FRONT_END),
        ("/usr/sbin/sshd -D", ""),
        ("/usr/bin/tail -f /var/log/celery/worker.log", ""),
        ("/usr/bin/vim uvicorn.conf", ""),
        ("", ""),
    ],
)
def test_kind_of(command: str, kind: str) -> None:
    assert recognition.kind_of(shlex.split(command)) == kind


def test_application_and_options() -> None:
    command = shlex.split(
        "sh -c 'exec gunicorn -b 0.0.0.0:9000 --chdir=/srv/x -k uvicorn.workers.UvicornWorker api.app.main:create()'"
    )
    assert recognition.application_of(command) == "api.app.main:create()"
    assert recognition.option_of(command, "-b", "--bind") == "0.0.0.0:9000"
    assert recognition.option_of(command, "--chdir") == "/srv/x"
    assert recognition.option_of(command, "--port") == ""


def test_worker_that_is_its_own_beat() -> None:
    assert recognition.with_beat(["celery", "-A", "app", "worker", "-B"])
    assert not recognition.with_beat(["celery", "-A", "app", "worker"])


def test_sourced_files() -> None:
    assert recognition.sourced_files(
        ["/bin/sh", "-c", "set -a; . /etc/x.env; source /etc/y.env && exec uvicorn a:b"]
    ) == [
        "/etc/x.env",
        "/etc/y.env",
    ]
