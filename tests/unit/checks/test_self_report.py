# SPDX-License-Identifier: GPL-3.0-or-later
"""What an application's own words on its health are taken for."""

from __future__ import annotations

import typing as t

import pytest

from wheels_ops.checks import self_report


@pytest.mark.parametrize(
    ("document", "status", "reasons"),
    [
        ({"status": "healthy", "version": "2.0.1"}, "ok", ()),
        ({"status": "UP"}, "ok", ()),
        ({"status": " Degraded "}, "warning", ("its status is  Degraded ",)),
        ({"status": "unhealthy", "error": "no login"}, "critical", ("its status is unhealthy (no login)",)),
        ({"overall_status": "critical"}, "critical", ("its status is critical",)),
        ({"status": "not_ready"}, "critical", ("its status is not_ready",)),
        ({"healthy": False}, "critical", ("its status is False",)),
        ({"ok": True}, "ok", ()),
        # The worst of several words counts.
        ({"status": "ok", "overall_status": "warning"}, "warning", ("its status is warning",)),
        # health+json, as the deployed backend answers
        (
            {
                "status": "fail",
                "checks": {"database:connection": [{"status": "fail"}], "redis:connection": [{"status": "pass"}]},
            },
            "critical",
            ("database:connection is critical",),
        ),
        (
            {
                "status": "fail",
                "checks": {
                    "celery:queues": [{"status": "warn"}],
                    "redis:write": [{"status": "fail", "output": "MISCONF"}],
                },
            },
            "critical",
            ("redis:write is critical (MISCONF)", "celery:queues is warning"),
        ),
        (
            {"status": "warn", "checks": {"monitoring:samples": [{"status": "warn"}]}},
            "warning",
            ("monitoring:samples is warning",),
        ),
        # several nodes of one component: the worst
        (
            {"status": "warn", "checks": {"database": [{"status": "pass"}, {"status": "warn"}]}},
            "warning",
            ("database is warning",),
        ),
        # the older releases' /health/detailed and other frameworks
        (
            {
                "status": "unhealthy",
                "components": {"database": {"status": "unhealthy", "error": "refused"}, "cache": {"status": "healthy"}},
            },
            "critical",
            ("database is critical (refused)",),
        ),
        ({"status": "DOWN", "components": {"db": {"status": "DOWN"}}}, "critical", ("db is critical",)),
        ({"services": [{"name": "database", "healthy": False}]}, "critical", ("database is critical",)),
        ({"dependencies": {"database": False, "redis": True}}, "critical", ("database is critical",)),
        ({"checks": {"database": "error"}}, "critical", ("database is critical",)),
        ({"checks": {"database": "ok"}}, "ok", ()),
        # a list alone, a component of a component, a wrapper as FastAPI's exceptions have, and words alone
        ([{"name": "database", "status": "unhealthy"}], "critical", ("database is critical",)),
        (
            {"checks": [{"name": "storage", "checks": {"database": "down"}}]},
            "critical",
            ("storage.database is critical",),
        ),
        ({"detail": {"status": "unhealthy", "error": "no login"}}, "critical", ("its status is unhealthy (no login)",)),
        (
            {"success": True, "data": {"status": "ok", "checks": {"redis:write": "fail"}}},
            "warning",
            ("redis:write is critical",),
        ),
        ({"status": "ok", "health": {"status": "degraded"}}, "warning", ("its status is degraded",)),
        ("unhealthy", "critical", ("its status is unhealthy",)),
        ({"status": "unknown"}, "unknown", ("its status is unknown",)),
        # What nobody understands is not health.
        ({"status": "running wheels"}, "unknown", ("its status is running wheels, which cannot be understood",)),
        ({"status": 0}, "unknown", ("its status is 0, which cannot be understood",)),
        ({"status": 1}, "unknown", ("its status is 1, which cannot be understood",)),
        ({"status": "1"}, "unknown", ("its status is 1, which cannot be understood",)),
        ({"status": None}, "unknown", ("its status is None, which cannot be understood",)),
        ({"status": 503}, "critical", ("its status is 503",)),
        ({"status": "starting"}, "warning", ("its status is starting",)),
        ({"status": "OUT_OF_SERVICE"}, "critical", ("its status is OUT_OF_SERVICE",)),
        ({"healthy": 0}, "critical", ("its status is 0",)),
        ({"up": 1}, "ok", ()),
        ({"success": False}, "critical", ("its status is False",)),
        ({"is_healthy": False, "message": "no disk"}, "critical", ("its status is False (no disk)",)),
        ({"status": "ok", "state": "CA"}, "ok", ()),
        ({"status": 200, "data": {"status": "down"}}, "critical", ("its status is down",)),
        ({"error": "no login"}, "warning", ("an error (no login)",)),
        ("CRITICAL: no database", "critical", ("its status is CRITICAL",)),
        ("status: down", "critical", ("its status is down",)),
        (self_report.Unreadable("its answer is no valid JSON"), "unknown", ("its answer is no valid JSON",)),
        # components by their own name, and components of components
        ({"status": "ok", "database": {"status": "down"}}, "warning", ("database is critical",)),
        ({"database": {"connected": 1, "status": "down"}}, "critical", ("database is critical",)),
        ({"status": "healthy", "db": "error", "log_level": "error"}, "warning", ("db is critical",)),
        (
            {"status": "healthy", "redis_connection": False, "debug": False},
            "warning",
            ("redis_connection is critical",),
        ),
        (
            {"components": {"db": {"primary": {"status": "UP"}, "replica": {"details": {"lag": "down"}}}}},
            "critical",
            ("db.replica.lag is critical",),
        ),
        (
            {"status": "UP", "components": {"db": {"status": "odd"}}},
            "warning",
            ("db is unknown (its status is odd, which cannot be understood)",),
        ),
        ({"checks": {"db": {"status": 500}}}, "critical", ("db is critical",)),
        (
            {"checks": {"a": {"b": {"c": {"d": {"e": {"status": "down"}}}}}}},
            "critical",
            ("a.b.c.d.e is critical",),
        ),
        (
            {"checks": {"a": {"b": {"c": {"d": {"e": {"f": {"status": "down"}}}}}}}},
            "unknown",
            ("a.b.c.d.e.f is unknown (more than 5 levels deep)",),
        ),
        # An application that calls itself well does without the component: a warning, not an outage.
        (
            {"status": "healthy", "components": {"database": {"status": "unhealthy"}}},
            "warning",
            ("database is critical",),
        ),
    ],
)
def test_words_become_a_status_with_its_reasons(document: t.Any, status: str, reasons: t.Tuple[str, ...]) -> None:
    said = self_report.read(document)
    assert said is not None
    assert (said.status, said.reasons) == (status, reasons)


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        "ok",
        3,
        {},
        {"status": 200},
        {"message": "PAM backend"},
        {"checks": {"x": {}}},
        {"checks": {"x": {"status": "disabled"}}},
        {"services": {"count": 3, "version": "2.0"}},
        "Wheels and Wins, a page about downtime",
    ],
)
def test_what_says_nothing_of_health_is_not_taken_for_health(document: t.Any) -> None:
    assert self_report.read(document) is None


@pytest.mark.parametrize("name", sorted(self_report.MEASURED_OUTSIDE))
def test_what_is_measured_from_outside_is_not_counted_twice(name: str) -> None:
    said = self_report.read(
        {
            "status": "fail",
            "checks": {f"{name}:utilization": [{"status": "fail"}], "redis:connection": [{"status": "pass"}]},
        }
    )
    assert said == self_report.SelfReport("ok", (), (f"{name}:utilization (critical)",))
    both = self_report.read(
        {"status": "fail", "checks": {f"{name}:x": [{"status": "fail"}], "database:connection": [{"status": "warn"}]}}
    )
    assert both == self_report.SelfReport("warning", ("database:connection is warning",), (f"{name}:x (critical)",))


@pytest.mark.parametrize(
    "name",
    ["database:connection", "redis:connection", "redis:write", "celery:beat", "db_pool:alert", "memories", "supabase"],
)
def test_the_logins_of_the_application_count(name: str) -> None:
    said = self_report.read({"status": "fail", "checks": {name: [{"status": "fail"}]}})
    assert said == self_report.SelfReport("critical", (f"{name} is critical",), ())


def test_a_reason_is_short_and_holds_no_connection_string() -> None:
    said = self_report.read(
        {"status": "error", "error": "cannot connect to postgresql://u:s3cret@h/d\n password=s3cret " + "x " * 200}
    )
    assert said is not None and "s3cret" not in said.reasons[0] and "\n" not in said.reasons[0]
    assert (
        said.reasons[0].startswith("its status is error (cannot connect to *** *** x x") and len(said.reasons[0]) < 150
    )


@pytest.mark.parametrize(
    ("word", "status"),
    [
        ("pass", "ok"),
        ("warn", "warning"),
        ("fail", "critical"),
        (True, "ok"),
        (False, "critical"),
        (1, None),
        (None, None),
        ("?", None),
    ],
)
def test_grades(word: t.Any, status: t.Optional[str]) -> None:
    assert self_report.grade(word) == status


GRADES = {
    "ok": (
        "pass passed passing ok up healthy good green ready alive operational available connected active fine idle live"
        " normal online running serving success successful true"
    ),
    "warning": (
        "warn warning degraded partial impaired limited yellow starting starting_up initializing initialising booting"
        " loading warming_up pending recovering restarting migrating maintenance draining stopping shutting_down"
    ),
    "critical": (
        "fail failed failing failure error errored down unhealthy critical emergency red dead broken unavailable"
        " not_available not_ready offline disconnected unreachable timeout outage bad ko not_ok nok not_healthy crashed"
        " stopped disaster fatal false major_outage partial_outage out_of_service outofservice"
    ),
    "unknown": "unknown",
}


@pytest.mark.parametrize(
    "document", [{"data": {"data": {"status": "down"}}}, {"data": ["down"]}, [[[[[[[{"status": "down"}]]]]]]]]
)
def test_what_lies_deep_is_no_report(document: t.Any) -> None:
    assert self_report.read(document) is None


def test_a_component_that_is_measured_from_outside_is_so_inside_another() -> None:
    said = self_report.read({"status": "fail", "components": {"host": {"checks": {"memory": "fail"}}}})
    assert said == self_report.SelfReport("ok", (), ("host.memory (critical)",))


@pytest.mark.parametrize(
    ("word", "status"), [(word, status) for status, words in GRADES.items() for word in words.split()]
)
def test_the_words_that_are_known(word: str, status: str) -> None:
    assert self_report.grade(word) == self_report.grade(word.upper()) == status


@pytest.mark.parametrize(
    ("word", "status"),
    [
        ("not ready", "critical"),
        ("out of service", "critical"),
        ("starting up", "warning"),
        ("warming up", "warning"),
        ("shutting down", "warning"),
    ],
)
def test_a_word_of_two_words_is_known(word: str, status: str) -> None:
    assert self_report.grade(word) == status


SWITCHED_OFF = [
    "disabled",
    "inactive",
    "n/a",
    "na",
    "none",
    "not configured",
    "not_configured",
    "off",
    "optional",
    "skip",
]


@pytest.mark.parametrize("word", [*SWITCHED_OFF, "skipped", " Disabled "])
def test_a_component_that_nobody_switched_on_is_none(word: str) -> None:
    document = {"checks": {"mail": {"status": word, "error": "x"}, "database": {"status": "down"}}}
    assert self_report.read(document) == self_report.SelfReport("critical", ("database is critical",))


@pytest.mark.parametrize("key", ["status", "overall_status", "overall", "state", "health"])
def test_a_word_that_nobody_understands_is_none_of_health_under_each_key(key: str) -> None:
    said = self_report.read({key: "odd" * 20})
    assert said is not None
    assert (said.status, said.reasons) == ("unknown", (f"its status is {'odd' * 13}o, which cannot be understood",))


@pytest.mark.parametrize("key", ["healthy", "is_healthy", "ok", "up", "alive", "ready", "available", "success"])
def test_a_truth_value_is_one_as_a_number_too(key: str) -> None:
    for value, status in (
        (0, "critical"),
        (1, "ok"),
        (False, "critical"),
        ("0", "critical"),
        (True, "ok"),
        (2, "unknown"),
    ):
        said = self_report.read({key: value})
        assert said is not None and said.status == status, (key, value)
    assert self_report.read({key: "a sentence"}) is None


@pytest.mark.parametrize(
    ("value", "status"),
    [(199, "unknown"), (399, None), (400, "critical"), (599, "critical"), (600, "unknown"), (0.5, "unknown")],
)
def test_a_number_is_the_code_of_an_answer_or_cannot_be_understood(value: float, status: t.Optional[str]) -> None:
    said = self_report.read({"status": value})
    assert (said.status if said else None) == status


@pytest.mark.parametrize("key", ["data", "detail", "result", "health"])
def test_a_report_inside_is_read(key: str) -> None:
    said = self_report.read({key: {"status": "down"}})
    assert said is not None and said.status == "critical"


@pytest.mark.parametrize("parts", ["checks", "components", "services", "dependencies", "details"])
def test_components_of_a_component_may_be_a_list(parts: str) -> None:
    said = self_report.read({"checks": {"storage": {"status": "up", parts: [{"name": "disk1", "status": "down"}]}}})
    assert said == self_report.SelfReport("critical", ("storage.disk1 is critical",))


@pytest.mark.parametrize("name", ["db", "postgres", "main_database", "redis_status", "celery", "workers", "api_health"])
def test_a_component_by_its_own_name_is_read(name: str) -> None:
    assert self_report.read({"status": "ok", name: "down"}) == self_report.SelfReport(
        "warning", (f"{name} is critical",)
    )


@pytest.mark.parametrize("name", ["log_level", "mode", "colour", "databases", "version"])
def test_another_text_beside_the_status_is_no_component(name: str) -> None:
    assert self_report.read({"status": "ok", name: "down"}) == self_report.SelfReport("ok")


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("status : down, since noon", "critical"),
        ("Unhealthy! call somebody", "critical"),
        ("degraded - one of two", "warning"),
        ("not ready (starting)", "critical"),
        ("down because of maintenance", None),
        ("OK: all well", None),
    ],
)
def test_the_first_word_of_a_text_counts(text: str, status: t.Optional[str]) -> None:
    said = self_report.read(text)
    assert (said.status if said else None) == status


def test_errors_without_a_status_are_a_warning() -> None:
    assert self_report.read({"errors": ["no login"]}) == self_report.SelfReport("warning", ("an error (['no login'])",))
    assert self_report.read({"error": "", "errors": []}) is None


@pytest.mark.parametrize("key", ["status", "overall_status", "overall", "state", "health", "healthy", "ok"])
@pytest.mark.parametrize("parts", ["checks", "components", "services", "dependencies"])
def test_the_keys_that_are_read(key: str, parts: str) -> None:
    said = self_report.read({key: False, parts: {"database": {key: "down"}}})
    assert said == self_report.SelfReport("critical", ("database is critical",))


@pytest.mark.parametrize("key", ["output", "error", "message", "reason", "detail"])
def test_the_keys_of_a_reason(key: str) -> None:
    said = self_report.read({"status": "down", key: "no login"})
    assert said is not None and said.reasons == ("its status is down (no login)",)


def test_components_in_a_list_are_named_as_they_name_themselves() -> None:
    said = self_report.read(
        {
            "checks": [
                {"component": "database", "status": "down"},
                {"status": "warn"},
                "fail",
                {"name": "x", "status": "pass"},
            ]
        }
    )
    assert said is not None and said.reasons == ("database is critical", "2 is critical", "1 is warning")
