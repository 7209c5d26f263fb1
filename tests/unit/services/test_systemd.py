# SPDX-License-Identifier: GPL-3.0-or-later
"""What recorded answers of systemctl mean."""

from __future__ import annotations

import pytest

from wheels_ops.core.results import OpsError
from wheels_ops.services import systemd

#: systemctl show of systemd 252 (Debian 12) for redis (an alias), a unit that is missing, and one at its start limit.
SHOWN = """Type=notify
Result=success
NRestarts=0
ExecMainStatus=0
MainPID=123
StartLimitIntervalUSec=10s
StartLimitBurst=5
Id=redis-server.service
Names=redis.service redis-server.service
LoadState=loaded
ActiveState=active
SubState=running
InvocationID=0123456789abcdef0123456789abcdef
ActiveEnterTimestampMonotonic=5000000
ControlGroup=/system.slice/redis-server.service

Result=success
NRestarts=0
Id=nothing.service
Names=nothing.service
LoadState=not-found
ActiveState=inactive
SubState=dead

Type=simple
Result=start-limit-hit
NRestarts=5
ExecMainStatus=1
MainPID=0
Id=web.service
LoadState=loaded
ActiveState=failed
SubState=failed
InvocationID=ffffffffffffffffffffffffffffffff
StartLimitIntervalUSec=1min 30s
StartLimitBurst=5
"""


def test_one_answer_of_systemctl_for_several_units() -> None:
    found = systemd.parse_show(SHOWN, ["redis", "nothing", "web"], uptime=65.0)
    redis, nothing, web = found["redis"], found["nothing"], found["web"]
    assert (redis.exists, redis.running, redis.pid, redis.uptime_s, redis.instance) == (
        True,
        True,
        123,
        60.0,
        "0123456789abcdef0123456789abcdef",
    )
    assert redis.details["id"] == "redis-server.service"
    assert not nothing.exists
    assert (web.failed, web.running, web.result, web.restarts, web.instance) == (True, False, "start-limit-hit", 5, "")
    assert web.details["start_limit_interval_s"] == 90
    with pytest.raises(OpsError, match="2 units"):
        systemd.parse_show(SHOWN, ["a", "b"], uptime=1.0)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10s", 10.0), ("1min 30s", 90.0), ("500ms", 0.5), ("1d 2h", 93600.0), ("infinity", float("inf")), ("", 0.0)],
)
def test_time_spans_of_systemd(text: str, seconds: float) -> None:
    assert systemd.span(text) == seconds
