# SPDX-License-Identifier: GPL-3.0-or-later
"""Addresses and texts with secrets in them, and what of each may be shown: one table for every redactor."""

from __future__ import annotations

import typing as t

#: A Redis URL, as a person writes it or mistypes it, and how it is shown.
REDIS_URLS: t.Dict[str, str] = {
    "redis://localhost:6379": "redis://localhost:6379",
    "redis://:pw@h:1/2": "redis://:***@h:1/2",
    "rediss://user:pw@h/0": "rediss://user:***@h/0",
    "redis://user@h": "redis://user@h",
    "redis://u:redis@redis:6379/0": "redis://u:***@redis:6379/0",
    "redis://:p%40ss@h:6379/0": "redis://:***@h:6379/0",
    "redis://[::1]:6379/1?db=1": "redis://[::1]:6379/1?db=1",
    "redis://127.0.0.1:1/0?password=pw": "redis://127.0.0.1:1/0?password=***",
    "redis://127.0.0.1:1/0?db=1&password=p@w&ssl_cert_reqs=none": (
        "redis://127.0.0.1:1/0?db=1&password=***&ssl_cert_reqs=none"
    ),
    "redis://127.0.0.1:1/0?%70assword=pw": "redis://127.0.0.1:1/0?%70assword=***",
    "unix:///run/r.sock?password=pw": "unix:///run/r.sock?password=***",
    "unix:///run/r.sock?db=1": "unix:///run/r.sock?db=1",
    "unix://user:pw@/run/r.sock?db=1": "unix://user:***@/run/r.sock?db=1",
    # Passwords that are not percent-encoded, with each character that ends a part of a URL.
    "redis://:p/w@h:1/0": "redis://:***@h:1/0",
    "redis://:p#w@h:1/0": "redis://:***@h:1/0",
    "redis://u:1?w@h:1/0": "redis://u:***@h:1/0",
    "redis://u:p@ss/x@h": "redis://u:***@h",
    "redis://u:p w@h:1/0": "redis://u:***@h:1/0",
    "redis://u:p:w@h:1/0": "redis://u:***@h:1/0",
    "redis://u:[w@h:1/0": "redis://u:***@h:1/0",
    # What stands where the number of a database belongs may be the rest of a password.
    "redis://h:1/pw": "redis://h:1/***",
    **dict.fromkeys(("pw", "", "redis://[::1", "redis://h:pw"), "***"),
}

#: Any other URL, or list of URLs.
URLS: t.Dict[str, str] = {
    "postgresql+asyncpg://u:pw@h:5432/db?sslmode=require": "postgresql+asyncpg://u:***@h:5432/db?sslmode=require",
    "postgresql://u:pw@h1:1,h2:2/db?application_name=a@b&sslpassword=x": (
        "postgresql://u:***@h1:1,h2:2/db?application_name=a@b&sslpassword=***"
    ),
    "sentinel://:pw1@h1:26379;sentinel://:pw2@h2:26379/mymaster": (
        "sentinel://:***@h1:26379;sentinel://:***@h2:26379/mymaster"
    ),
    "sentinel://:pw1@h1:26379;:pw2@h2:26379/mymaster": "sentinel://:***@h1:26379;:***@h2:26379/mymaster",
    "sentinel://h1:1;h2:2/mymaster?password=pw": "sentinel://h1:1;h2:2/mymaster?password=***",
    "amqp://guest:pw@h:5672//": "amqp://guest:***@h:5672//",
    "http://u:pw@h/p@x?to=a@b#part": "http://u:***@h/p@x?to=a@b#part",
    "wss://h/api/v1/pam/ws/1?token=pw&session=7&last_seq=3": "wss://h/api/v1/pam/ws/1?token=***&session=7&last_seq=3",
    "https://h/cb#access_token=pw&state=1": "https://h/cb#access_token=***&state=1",
}

#: A text, and the same without its secrets.
TEXTS: t.Dict[str, str] = {
    "no PONG from redis://127.0.0.1:1/0?password=pw: Error 111. Next": (
        "no PONG from redis://127.0.0.1:1/0?password=***: Error 111. Next"
    ),
    "redis://:pw@h:1/0 and postgresql://u:pw@h/d, then http://h/": (
        "redis://:***@h:1/0 and postgresql://u:***@h/d, then http://h/"
    ),
    "see 'redis://:p w@h:1/0', then": "see 'redis://:***@h:1/0', then",
    '{"url": "redis://:p@h/0", "to": "y@z"}': '{"url": "redis://:***@h/0", "to": "y@z"}',
    "host=h user=u password=pw dbname=d": "host=h user=u password=*** dbname=d",
    "host=h password='p w\\' x' dbname=d": "host=h password='***' dbname=d",
    "host = h password = 'p w' dbname = d": "host = h password = '***' dbname = d",
    "GET /ws?token=pw&user=1 HTTP/1.1": "GET /ws?token=***&user=1 HTTP/1.1",
    "refused: /ws?token=pw.": "refused: /ws?token=***.",
    "Authorization: Bearer pw": "Authorization: Bearer ***",
    "Authorization: Basic dXNlcjpwdw==": "Authorization: Basic ***",
    "X-Ops-Token: k#9f": "X-Ops-Token: ***",
    "sent Bearer abc.def-123 twice": "sent Bearer *** twice",
    "{'Authorization': 'Bearer pw', \"token\": \"pw\", 'a': 1}": "{'Authorization': '***', \"token\": \"***\", 'a': 1}",
    "jwt eyJhbGciOi.eyJzdWIiOi.c2lnbg was refused": "jwt *** was refused",
    "next=redis%3A%2F%2Fu%3Apw%40h%3A1%2F0&x=1": "next=redis%3A%2F%2Fu%3A***%40h%3A1%2F0&x=1",
    "next=%2Fws%3Ftoken%3Dpw%26x%3D1": "next=%2Fws%3Ftoken%3D***%26x%3D1",
    "SECRET_KEY='pw' LOG_LEVEL='info'": "SECRET_KEY='***' LOG_LEVEL='info'",
    "REDIS_PASSWORD=pw\nSMTP_PASS=pw\nPORT=80": "REDIS_PASSWORD=***\nSMTP_PASS=***\nPORT=80",
    "ALTER ROLE app PASSWORD 'pw';": "ALTER ROLE app PASSWORD '***';",
    **{
        # Nothing of this is a secret.
        text: text
        for text in (
            "Redis at redis://127.0.0.1:6379/0 refuses the password: set the right one in url.",
            "token_file=/etc/wheels-ops/ops-token max_tokens=3 bypass=1",
            'WWW-Authenticate: Bearer realm="ops"',
            "Basic health checks of the Bearer token",
            "For example postgresql://USER:PASSWORD@HOST:PORT/DATABASE.",
            "mail a@b.example; see <https://h:8443/x?y=1&z=2>.",
            "memory: 91.2 % (limit 85 %), 10:04:05, 12 keys",
            "USING (user_id = auth.uid() AND password = current_setting('x'))",
        )
    },
}
