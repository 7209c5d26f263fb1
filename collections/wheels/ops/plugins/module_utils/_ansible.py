# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Where the library meets Ansible. Nothing else under ``module_utils`` imports it."""

from __future__ import annotations

import contextlib
import os
import traceback
import typing as t

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

from .core.packages import package_of
from .core.redaction import is_secret, redact, redact_diff, redact_value, secrets_of
from .core.results import OpsError, Result, escape_names
from .host import environment_files
from .state import directory, lock


def run(
    module: AnsibleModule,
    call: t.Callable[[], t.Union[Result, t.Dict[str, t.Any]]],
    *,
    renews_lock: bool = True,
    references: bool = True,
) -> t.NoReturn:
    """Calls a check or a remedy and ends the module with its result. Meanwhile the lock of its run is renewed, with
    ``renews_lock``. With ``references`` the call sees what those among its options refer to.

    An ``OpsError`` becomes one clear message with its details beside it; a missing library names the package and the
    interpreter; anything else is a defect of ours and says so.
    """
    # Ansible shows the arguments with -vvv. The address of a broker is no secret, its password is.
    invocation = {"module_args": escape_names(_without_passwords(module.params))}
    secrets = _secrets(module)
    _keep_words_readable(module)
    try:
        if references:
            secrets += _resolve_references(module)
        if module.params.get("state_dir"):
            directory.require(module.params["state_dir"])
        with (
            lock.of_the_run(os.environ)
            if renews_lock and not getattr(module, "check_mode", False)
            else contextlib.nullcontext()
        ):
            result = call()
    except OpsError as error:
        module.fail_json(
            msg=escape_names(redact(str(error), secrets)),
            **{"invocation": invocation, **escape_names(redact_value(error.details, secrets))},
        )
    except ImportError as error:
        module.fail_json(
            msg=missing_required_lib(
                package_of(error),
                reason="The role wheels.ops.prerequisites installs it into the virtual environment of our tasks.",
            ),
            exception=redact(traceback.format_exc(), secrets),
            invocation=invocation,
        )
    except Exception as error:  # every defect ends as one message, with the traceback for the report
        module.fail_json(
            msg=escape_names(
                redact(f"Internal error in wheels.ops; please report it: {type(error).__name__}: {error}", secrets)
            ),
            exception=escape_names(redact(traceback.format_exc(), secrets)),
            invocation=invocation,
        )
    for warning in result.warnings if isinstance(result, Result) else ():
        module.warn(escape_names(redact(warning, secrets)))
    shown = dict(result.as_dict() if isinstance(result, Result) else result)
    diff = {"diff": redact_diff(shown.pop("diff"), secrets)} if "diff" in shown else {}
    module.exit_json(**escape_names({"invocation": invocation, **redact_value(shown, secrets), **diff}))
    raise AssertionError("exit_json returned")


def _resolve_references(module: AnsibleModule) -> t.List[str]:
    """Puts what the options refer to in their place, and gives the secrets of it."""
    resolved = environment_files.resolve(module.params)
    secrets = []
    for name, value in resolved.items():
        if value != module.params[name]:
            module.params[name] = value
            secrets += secrets_of(value)
            if isinstance(value, str) and (module.argument_spec.get(name) or {}).get("no_log"):
                module.no_log_values.add(value)
    return secrets


#: Options whose values, under whatever name, are what a person gave for an environment: their names are shown.
_ENVIRONMENTS = frozenset({"import_environment"})


def _secrets(module: AnsibleModule) -> t.List[str]:
    """Every secret among the arguments: what is one by its name, what an address or a connection string holds, headers
    that are no ordinary ones."""
    return [word for word in secrets_of(_without_ordinary_headers(module.params)) if word != "None"]


def _without_ordinary_headers(value: t.Any) -> t.Any:
    if isinstance(value, dict):
        return {
            key: (
                {name: text for name, text in entry.items() if not _ordinary(name, text)}
                if key == "headers" and isinstance(entry, dict)
                else _without_ordinary_headers(entry)
            )
            for key, entry in value.items()
        }
    return [_without_ordinary_headers(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _ordinary(name: t.Any, value: t.Any) -> bool:
    return str(name).lower() in _ORDINARY_HEADERS or len(str(value)) < _SHORT


#: Headers that say how a request is made and hold no secret, in lower case.
_ORDINARY_HEADERS = frozenset(
    {
        "accept",
        "accept-charset",
        "accept-encoding",
        "accept-language",
        "access-control-request-headers",
        "access-control-request-method",
        "cache-control",
        "connection",
        "content-length",
        "content-type",
        "date",
        "dnt",
        "expect",
        "forwarded",
        "from",
        "host",
        "if-modified-since",
        "if-none-match",
        "origin",
        "pragma",
        "range",
        "referer",
        "sec-websocket-protocol",
        "sec-websocket-version",
        "te",
        "upgrade",
        "user-agent",
        "via",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-proto",
        "x-real-ip",
        "x-request-id",
        "x-requested-with",
    }
)
#: Ansible blanks a secret wherever its letters stand in the result. So few letters are no secret, and stand in every
#: other word.
_SHORT = 6
_HIDDEN = "VALUE_SPECIFIED_IN_NO_LOG_PARAMETER"


def _keep_words_readable(module: AnsibleModule) -> None:
    """Takes the values of headers that are no secrets out of what Ansible blanks in a result: ``https``, ``1``,
    ``localhost``.

    The arguments themselves show no value of any header; see ``_without_passwords``.
    """
    secrets = {
        str(module.params.get(name))
        for name, spec in module.argument_spec.items()
        if spec.get("no_log") and name != "headers"
    }
    for headers in _headers(module.params):
        for name, value in headers.items():
            if _ordinary(name, value) and str(value) not in secrets:
                module.no_log_values.discard(str(value))


def _headers(value: t.Any) -> t.Iterator[t.Mapping[str, t.Any]]:
    """Every dictionary ``headers`` in the arguments."""
    if isinstance(value, dict):
        for key, entry in value.items():
            if key == "headers" and isinstance(entry, dict):
                yield entry
            else:
                yield from _headers(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _headers(entry)


def _argument(name: str, value: t.Any) -> t.Any:
    if (name == "headers" or name in _ENVIRONMENTS) and isinstance(value, dict):
        return dict.fromkeys(value, _HIDDEN)
    return _HIDDEN if isinstance(value, str) and value and is_secret(name) else _without_passwords(value)


def _without_passwords(value: t.Any) -> t.Any:
    """Arguments as they may be shown: no password of a URL or a connection string, no value of a header or of an
    environment."""
    if isinstance(value, dict):
        return {key: _argument(str(key), entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_passwords(entry) for entry in value]
    # An argument may be the content of a file.
    return redact(value, source="\n" in value) if isinstance(value, str) else value
