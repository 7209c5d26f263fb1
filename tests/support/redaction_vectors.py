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
    "GET /v1/weather?key=pw&q=a HTTP/1.1": "GET /v1/weather?key=***&q=a HTTP/1.1",
    "https://b.example/x?sv=1&sig=p%3Dw&se=2": "https://b.example/x?sv=1&sig=***&se=2",
    "see https://h/cb?state=1&code=pwpw.": "see https://h/cb?state=1&code=***.",
    "next=%2Fcb%3Fcode%3Dpwpw%26x%3D1": "next=%2Fcb%3Fcode%3D***%26x%3D1",
    "https://b.example/k?X-Amz-Algorithm=A&X-Amz-Credential=pw%2F1&X-Amz-Signature=pw": (
        "https://b.example/k?X-Amz-Algorithm=A&X-Amz-Credential=***&X-Amz-Signature=***"
    ),
    "Authorization: AWS4-HMAC-SHA256 Credential=pw/1, SignedHeaders=host, Signature=pw": (
        "Authorization: AWS4-HMAC-SHA256 ***"
    ),
    'Authorization: Digest username="u", realm="r", response="pw"': "Authorization: Digest ***",
    "database:\n  user: app\n  password: p w # old\n  port: 5432": (
        "database:\n  user: app\n  password: *** # old\n  port: 5432"
    ),
    "login failed, user: app, password: pw1, host: h": "login failed, user: app, password: ***, host: h",
    "{password: pw1, port: 80}": "{password: ***, port: 80}",
    "api_key: pw1\nname: x": "api_key: ***\nname: x",
    "signing_key: |\n  pw1\n  pw2\nname: x": "signing_key: |\n  ***\nname: x",
    "password = pw1\nport = 1": "password = ***\nport = 1",
    "port 6379\nrequirepass pw1\nmasterauth 'pw1'\nsave 60 1": "port 6379\nrequirepass ***\nmasterauth '***'\nsave 60 1",
    "sentinel auth-pass mymaster pw1": "sentinel auth-pass mymaster ***",
    "user app on >pw1 #pw2 ~pam:* +@all": "user app on >*** #*** ~pam:* +@all",
    "127.0.0.1:6379> AUTH app pw1": "127.0.0.1:6379> AUTH *** ***",
    "AUTH default pw1": "AUTH default ***",
    '1764500000.1 [0 h:1] "AUTH" "pw1"': '1764500000.1 [0 h:1] "AUTH" "***"',
    "psql --password pw1 -h h": "psql --password *** -h h",
    "tool --db-password=pw1 --port 1": "tool --db-password=*** --port 1",
    "redis-cli -h h -a pw1 ping": "redis-cli -h h -a *** ping",
    "['redis-cli', '-a', 'pw1', 'ping']": "['redis-cli', '-a', '***', 'ping']",
    "curl -s -u app:pw1 http://h/": "curl -s -u app:*** http://h/",
    "PGPASSWORD=pw1 psql -h h": "PGPASSWORD=*** psql -h h",
    "STRIPE_KEY=pw1 WORKERS=2": "STRIPE_KEY=*** WORKERS=2",
    "Environment=MAPS_KEY=pw1": "Environment=MAPS_KEY=***",
    "PAYPAL_CLIENT_SECRET=pw1": "PAYPAL_CLIENT_SECRET=***",
    "session_eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOjF9.c2ln ended": "session_*** ended",
    "Set-Cookie: sid=pw1; Path=/; HttpOnly, csrf=pw2; Secure": "Set-Cookie: ***",
    "headers [('Set-Cookie', 'sid=pw1; Path=/'), ('Server', 'x')]": "headers [('Set-Cookie', '***'), ('Server', 'x')]",
    "-----BEGIN RSA PRIVATE KEY-----\npw1\n-----END RSA PRIVATE KEY-----\nok": (
        "-----BEGIN RSA PRIVATE KEY-----***-----END RSA PRIVATE KEY-----\nok"
    ),
    "paid with sk_live_4eC39HqLyjWDarjtT1 today": "paid with *** today",
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
            'FATAL:  password authentication failed for user "app"',
            "Access denied for user 'app'@'h' (using password: YES)",
            "NOAUTH Authentication required.",
            "ERR AUTH <password> called without any password configured for the default user.",
            "WRONGPASS invalid username-password pair or user is disabled.",
            "AUTH failed; requirepass is set and masterauth differs from requirepass",
            "key=12 keys, exit code=1, code: 137, status code=404",
            "12 keys without a time to live, such as key: pam:cache:1",
            "pass: 12, warn: 1, fail: 2",
            "--password is required, --password-file names a file",
            "cache_key=pam:x primary_key=id routing_key=celery",
            "PRIMARY_KEY=id TLS_KEY=/etc/ssl/private/x.key",
            "https://h/x?code=404&key=12",
            "no secret: numbers, switches and paths",
            "wrong password: try again",
            "ops token: under 16 characters refused",
            "API key: missing",
            "OPENAI_API_KEY: not set",
            "monkeyJob.handler.run and eyJob.x",
            "Access-Control-Allow-Credentials: true",
            "{'name': 'redis', 'key': 'maxmemory', 'code': 'OOM', 'keys': 12}",
            "token: '{{ vault_token }}'",
            "user app is on > 3 hosts",
            "USING (user_id = auth.uid() AND password = current_setting('x'))",
        )
    },
}
