# SPDX-License-Identifier: GPL-3.0-or-later
"""No secret is shown, whatever it stands in; everything else is."""

from __future__ import annotations

import ast
import difflib
import json
import re
import typing as t
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.collection import COLLECTION
from tests.support.redaction_vectors import REDIS_URLS, TEXTS, URLS
from wheels_ops.core import redaction
from wheels_ops.core.redaction import redact, redact_diff, redact_url, redact_value, secrets_of
from wheels_ops.core.results import OpsError
from wheels_ops.database import connect
from wheels_ops.health.check import Check
from wheels_ops.services import broker

CACHE_SERVICE = COLLECTION / "roles/backend_patches/files/app/services/cache_service.py"


def backend_redactor() -> t.Callable[[object], str]:
    """The function of the backend's cache, without the backend: its file imports the application."""
    tree = ast.parse(CACHE_SERVICE.read_text(encoding="utf-8"))
    wanted: t.List[ast.stmt] = [
        node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in ("redacted", "_first")
    ]
    names: t.Dict[str, t.Any] = {"re": re, "unquote": unquote, "urlsplit": urlsplit}
    exec(compile(ast.Module(wanted, []), str(CACHE_SERVICE), "exec"), names)
    return t.cast("t.Callable[[object], str]", names["redacted"])


@pytest.mark.parametrize(("url", "shown"), {**REDIS_URLS, **URLS}.items())
def test_redact_url(url: str, shown: str) -> None:
    assert redact_url(url) == shown


@pytest.mark.parametrize(("url", "shown"), REDIS_URLS.items())
def test_the_backend_shows_an_address_as_the_library_does(url: str, shown: str) -> None:
    assert backend_redactor()(url) == shown


@pytest.mark.parametrize(("text", "shown"), TEXTS.items())
def test_redact(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(shown) == shown, "a second time changes nothing"
    assert redact_value({"a": [text]}) == {"a": [shown]}


SECRET = st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), min_size=0, max_size=12).map(
    lambda text: f"S3cr{text}t!x"
)
#: Where a secret can stand in an address; every other part is a witness that has to survive.
PLACES = (
    "redis://{quoted}:{{}}@host.example:6379/7",
    "rediss://:{{}}@host.example/7",
    "redis://host.example:6379/7?db=3&password={{}}",
    "unix:///run/redis.sock?password={{}}&db=3",
    "sentinel://:{{}}@one.example:26379;sentinel://:{{}}@two.example:26379/mymaster",
    "postgresql+asyncpg://role:{{}}@host.example:5432/base?sslmode=require",
    "wss://host.example/api/ws?token={{}}&last_seq=4",
    "http://role:{{}}@host.example:8080/path/to?x=y",
    "amqp://role:{{}}@host.example:5672//",
)


@given(
    secret=SECRET,
    place=st.sampled_from(PLACES),
    text=st.sampled_from(("{}", "no answer from {}: Error 111.", "'{}' and then", '{{"url": "{}"}}', "a={} b")),
)
@settings(max_examples=300, deadline=None)
def test_a_secret_in_any_place_of_an_address_never_survives(secret: str, place: str, text: str) -> None:
    pattern = place.format(quoted="role")
    address = pattern.replace("{}", quote(secret, safe=""))
    for shown in (redact_url(address), redact(text.format(address)), str(redact_value({"x": [text.format(address)]}))):
        assert secret not in shown
        assert quote(secret, safe="") not in shown
        for part in (part for part in re.split(r"[{}:@;]+", pattern) if part):
            assert part in shown, "everything else survives"
    # By its value, without any address around it, in whatever spelling.
    known = secrets_of({"redis_url": address})
    assert secret in known
    for spelling in (secret, quote(secret, safe=""), json.dumps(secret), repr(secret)):
        shown = redact(f"it said {spelling} at once", known)
        assert secret not in shown
        assert quote(secret, safe="") not in shown
        assert shown.startswith("it said ")


@given(secret=SECRET, place=st.sampled_from((*PLACES[:2], PLACES[5])))
@settings(max_examples=200, deadline=None)
def test_a_password_that_is_not_encoded_never_survives(secret: str, place: str) -> None:
    address = place.format(quoted="role").replace("{}", secret)
    assert secret not in redact_url(address)
    assert "S3cr" not in redact_url(address)
    assert "host.example" in redact_url(address)


#: Where a secret stands without an address: settings, commands, options, headers, logs.
FORMS = (
    "GET /x?key={}&a=witness",
    "GET /x?a=witness&sig={}",
    "https://h.example/witness?code={}",
    "https://h.example/witness?X-Amz-Signature={}&X-Amz-Expires=3",
    "https://h.example/witness?X-Amz-Credential={}",
    "witness: 1\npassword: {}\nport: 80",
    "  - db_password: {}  # witness",
    "witness failed, password: {}, port: 80",
    "witness 1\nrequirepass {}",
    "masterauth {}\nwitness 1",
    "witness> AUTH {}",
    "AUTH {}\nwitness",
    "witness> AUTH app {}",
    "AUTH default {}\nwitness",
    "user app on >{} ~witness +@all",
    "witness --password {} -h h",
    "witness --password={} -h h",
    "redis-cli -h witness -a {} ping",
    "PGPASSWORD={} witness",
    "STRIPE_KEY={} witness",
    "export GOOGLE_MAPS_KEY={}\nwitness",
    "APP_SECRET={}\nwitness",
    "witness eyJhbGciOiJIUzI1NiJ9.{}",
    "witness\nSet-Cookie: sid={}; Path=/; HttpOnly",
    "witness\nSet-Cookie: a=b; Path=/, sid={}; Secure",
    "witness, Authorization: ApiKey {}",
)
#: Letters that a shell, a URL and YAML leave as they are.
WORD = st.text(alphabet="abcXYZ0189_-", max_size=12).map(lambda text: f"S3cr{text}t9x")


@given(
    secret=WORD,
    form=st.sampled_from(FORMS),
    around=st.sampled_from(("{}", "it said: {}", "first\n{}\nlast", "{} and more")),
)
@settings(max_examples=400, deadline=None)
def test_a_secret_in_any_form_never_survives(secret: str, form: str, around: str) -> None:
    text = around.format(form.format(secret))
    shown = redact(text)
    assert "S3cr" not in shown
    assert "t9x" not in shown
    assert "witness" in shown
    assert redact(shown) == shown, "a second time changes nothing"
    assert "S3cr" not in json.dumps(redact_value({"said": [text]}))


@given(
    st.text(alphabet="aZ0 :=-'\"?&\n*{}>#", max_size=40),
    st.sampled_from(("password", "AUTH", "requirepass", "--token", "?key", "Set-Cookie")),
)
@settings(max_examples=300, deadline=None)
def test_whatever_is_redacted_twice_is_redacted_once(text: str, name: str) -> None:
    once = redact(f"x {name}{text}")
    assert redact(once) == once


def test_a_command_as_a_list_has_no_secret() -> None:
    assert redact_value(["redis-cli", "-a", "S3cret", "ping"]) == ["redis-cli", "-a", "***", "ping"]
    assert redact_value(["tool", "--password", "S3cret", "--port", "1"]) == ["tool", "--password", "***", "--port", "1"]
    assert redact_value(["ls", "-a", "dir"]) == ["ls", "-a", "dir"]


def test_what_the_collection_itself_says_is_shown() -> None:
    """Every text in its programs that is no address and no assignment: messages, hints, names of results."""
    changed = [
        f"{path.name}:{node.lineno}: {node.value}"
        for path in sorted(Path(redaction.__file__).parents[1].rglob("*.py"))
        if path.parent.name != "core"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and redact(node.value) != node.value
    ]
    assert changed == []


def test_a_short_secret_goes_by_its_place_and_a_word_leaves_other_words() -> None:
    assert redact("all is ok, host=h password=ok", ["ok"]) == "all is ok, host=h password=***"
    assert redact("postgresql://h/postgres: postgres is wrong", ["postgres"]) == "postgresql://h/***: *** is wrong"


def test_values_under_the_name_of_a_secret_and_of_headers_are_hidden() -> None:
    shown = redact_value(
        {
            "password": "pw",
            "headers": {"X-A": "pw"},
            "token_file": "/etc/t",
            "n": [1, None, ("redis://:pw@h/0",)],
            "token": "",
        }
    )
    assert shown == {
        "password": "***",
        "headers": {"X-A": "***"},
        "token_file": "/etc/t",
        "n": [1, None, ["redis://:***@h/0"]],
        "token": "",
    }


def test_a_difference_of_an_environment_file_names_what_changes_without_its_value() -> None:
    old = "# ours\nWORKERS='1'\nFEED='mark3d-old'\nPLACE='/var/lib/wheels-ops/x'\n"
    new = old.replace("-old", "-new").replace("'1'", "'2'") + "API_KEY='mark3d-2'\n"
    shown = redact_diff([{"before": old, "after": new, "after_header": "etc/backend.env (after)"}])[0]
    assert shown["before"] == "# ours\nWORKERS='1'\nFEED='***'\nPLACE='/var/lib/wheels-ops/x'\n"
    assert (
        shown["after"]
        == "# ours\nWORKERS='2'\nFEED='*** (another value)'\nPLACE='/var/lib/wheels-ops/x'\nAPI_KEY='***'\n"
    )
    assert redact_diff([{"before": old, "after": ""}])[0]["before"] == shown["before"]


def test_a_difference_in_lines_of_an_environment_file_hides_them_too() -> None:
    old, new = "WORKERS='1'\nFEED='mark3d-old'\n", "WORKERS='2'\nFEED='mark3d-new'\nKEPT='mark3d-kept'\n"
    lines = difflib.unified_diff(
        old.splitlines(True), new.splitlines(True), "etc/backend.env (before)", "etc/backend.env (after)"
    )
    shown = redact_diff([{"prepared": "".join(lines)}])[0]["prepared"]
    assert "mark3d" not in shown
    assert shown.splitlines()[:2] == ["--- etc/backend.env (before)", "+++ etc/backend.env (after)"]
    assert {"-WORKERS='1'", "+WORKERS='2'", "-FEED='***'", "+FEED='*** (another value)'", "+KEPT='***'"} <= set(
        shown.splitlines()
    )
    code = "--- a.py (before)\n+++ a.py (after)\n@@ -0,0 +1 @@\n+password = f(token=token)\n"
    assert redact_diff([{"prepared": code}]) == [{"prepared": code}]


def test_a_difference_of_source_is_shown_as_it_is() -> None:
    code = "def f(token=token, password=None):\n    return {'token': token, \"password\": 'x'}\n"
    assert redact_diff([{"before": "", "after": code}]) == [{"before": "", "after": code}]


@pytest.mark.parametrize(
    "piece",
    [
        "a",
        "a_password-",
        "password='",
        "a://b@",
        "://",
        "a://h;",
        "%3A%2F%2F",
        "x%3A",
        "'token':",
        "?password=a&",
        "eyJ",
        "Bearer ",
    ],
)
def test_a_long_line_of_a_log_takes_no_more_time_for_each_letter(piece: str) -> None:
    """A pattern that goes back and forth would need minutes for these."""
    text = piece * (200_000 // len(piece))
    assert isinstance(redact(text), str)
    assert isinstance(redact(text, source=True), str)


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:S3cr/et@host:1/0",
        "redis://u:S3cr?et@h",
        "redis://u:S3cr[et@h",
        "redis://u:S3cr#et@h:1/0",
        "redis://h:1/S3cret",
    ],
)
def test_the_reason_why_an_address_cannot_be_read_quotes_no_piece_of_the_password(url: str) -> None:
    try:
        broker.connect(url).close()
    except OpsError as error:
        assert "S3cr" not in str(error)


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://u:S3cr/et@127.0.0.1:1/d",
        "postgresql://u:S3@cret@127.0.0.1:1/d",
        "host=127.0.0.1 port=1 password='S3cret",
        "S3cret",
    ],
)
def test_libpq_quotes_no_piece_of_the_password(dsn: str) -> None:
    with pytest.raises(OpsError) as caught:
        connect.connect(dsn, connect_timeout=2)
    assert not re.search("S3|cret", str(caught.value))


def test_whatever_a_check_or_an_error_says_has_no_secret() -> None:
    said = "no answer from http://u:S3cret@h/?token=S3cret"
    check = Check(
        name="http", status="critical", message=said, details={"tried": (said,), "headers": {"X-Key": "S3cret"}}
    )
    assert "S3cret" not in json.dumps(check.as_dict())
    assert "S3cret" not in str(OpsError(said, hint=said))
    assert "http://u:***@h/?token=***" in str(OpsError(said))


def test_there_is_one_redactor() -> None:
    """Whoever writes another one finds this line: extend the one that is there."""
    library = Path(redaction.__file__).parents[1]
    own = [
        f"{path.relative_to(library)}: {match[0]}"
        for path in sorted(library.rglob("*.py"))
        if path != Path(redaction.__file__)
        for match in re.finditer(
            r"def \w*(?:mask|redact|scrub)\w*\(|(?:\.replace|re\.sub)\([^)]*\*\*\*", path.read_text(encoding="utf-8")
        )
        if "def scrubbed(" not in match[0]
    ]
    assert own == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://h/?x=1#access_token=s3cret-Value", "https://h/?x=1#access_token=***"),
        ("postgres://u:pw@h/d?password=s3cret#name=Value", "postgres://u:***@h/d?password=***"),
        ("https://s3cretValue@sentry.example/1", "https://***@sentry.example/1"),
        ("ssh://git@example.org/x", "ssh://git@example.org/x"),
        ("Cookie: session=s3cret; other=Value and more", "Cookie: *** and more"),
        ("ALTER ROLE x PASSWORD E's3cret\\'Value' VALID", "ALTER ROLE x PASSWORD E'***' VALID"),
        ("ALTER ROLE x PASSWORD 's3cret\\'", "ALTER ROLE x PASSWORD '***'"),
        ("ALTER ROLE x PASSWORD $$s3cret'Value$$ VALID", "ALTER ROLE x PASSWORD *** VALID"),
        ("ALTER ROLE x PASSWORD $q$s3cret\nValue$q$ VALID", "ALTER ROLE x PASSWORD *** VALID"),
        ("SUPABASE_KEY=s3cretValue", "SUPABASE_KEY=***"),
    ],
)
def test_what_else_can_hold_a_secret(text: str, shown: str) -> None:
    assert redaction.redact(text) == shown


def test_a_url_of_thousands_of_fragments_is_read() -> None:
    url = "https://h/?" + "#a=b" * 5000 + "#token=s3cret"
    assert redaction.redact(url) == url.replace("s3cret", "***")
