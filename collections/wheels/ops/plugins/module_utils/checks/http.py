# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The backend over HTTP: does it answer, how fast, and how often with an error."""

from __future__ import annotations

import statistics
import time
import typing as t

from ..health import Check
from ..thresholds import DEFAULTS, worst


def check(
    base_url: str,
    *,
    paths: t.Sequence[str] = ("/health",),
    samples: int = 10,
    timeout: float = 10.0,
    verify: t.Union[bool, str] = True,
) -> Check:
    """Asks every path ``samples`` times over one connection. The value is the 95th percentile of the time to the answer in ms.

    An answer below 400 counts as good. The few distinct paths keep the backend's own address blocking from seeing a scan.
    """
    import requests

    times: t.List[float] = []
    errors: t.Dict[str, int] = {}
    with requests.Session() as session:
        session.verify = verify
        for path in paths:
            for _ignored in range(samples):
                started = time.monotonic()
                try:
                    answer = session.get(base_url + path, timeout=timeout, headers={"User-Agent": "wheels.ops health"})
                except requests.RequestException as error:
                    errors[f"{path}: {type(error).__name__}"] = errors.get(f"{path}: {type(error).__name__}", 0) + 1
                    if isinstance(error, (requests.ConnectionError, requests.Timeout)):
                        break  # the next ones would only wait as long
                    continue
                times.append((time.monotonic() - started) * 1000)
                if answer.status_code >= 400:
                    key = f"{path}: {answer.status_code}"
                    errors[key] = errors.get(key, 0) + 1
    asked = len(times) + sum(count for name, count in errors.items() if not name[-3:].isdigit())
    failed = sum(errors.values())
    rate = 100.0 * failed / max(1, asked)
    slow, wrong = DEFAULTS["response_time_ms"], DEFAULTS["error_rate"]
    p95 = statistics.quantiles(times, n=20, method="inclusive")[18] if len(times) > 1 else (times[0] if times else None)
    status = "critical" if not times else worst([slow.status(p95), wrong.status(rate)])
    if not times:
        message = f"{base_url} does not answer: {', '.join(errors)}."
    elif errors:
        message = f"{rate:.0f} % of the answers are errors: {', '.join(errors)}."
    else:
        message = f"{', '.join(paths)}: {len(times)} answers, 95 % within {p95:.0f} ms."
    return Check(
        name="http",
        status=status,
        value=round(p95, 1) if p95 is not None else None,
        unit="ms",
        thresholds=slow.as_dict(),
        message=message,
        remedy="" if status == "ok" else "service_restart",
        details={"error_rate_percent": round(rate, 2), "errors": errors, "asked": asked, "median_ms": round(statistics.median(times), 1) if times else None},
    )
