# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Where the library meets Ansible. Nothing else under ``module_utils`` imports it."""

from __future__ import annotations

import traceback
import typing as t

from ansible.module_utils.basic import AnsibleModule, missing_required_lib

from .results import OpsError, Result
from .services.broker import masked


def run(module: AnsibleModule, call: t.Callable[[], t.Union[Result, t.Dict[str, t.Any]]]) -> t.NoReturn:
    """Calls a check or a remedy and ends the module with its result.

    An ``OpsError`` becomes one clear message with its details beside it; a missing library names the package and the
    interpreter; anything else is a defect of ours and says so.
    """
    # Ansible shows the arguments with -vvv. The address of a broker is no secret, its password is.
    invocation = {"module_args": _without_passwords(module.params)}
    _keep_words_readable(module)
    try:
        result = call()
    except OpsError as error:
        module.fail_json(msg=str(error), **{"invocation": invocation, **error.details})
    except ImportError as error:
        name = getattr(error, "name", None) or str(error)
        module.fail_json(
            msg=missing_required_lib(
                name.split(".", maxsplit=1)[0],
                reason="The role wheels.ops.prerequisites installs it into the virtual environment of our tasks.",
            ),
            exception=traceback.format_exc(),
            invocation=invocation,
        )
    except Exception as error:  # every defect ends as one message, with the traceback for the report
        module.fail_json(
            msg=f"Defect in wheels.ops, please report it: {type(error).__name__}: {error}",
            exception=traceback.format_exc(),
            invocation=invocation,
        )
    for warning in result.warnings if isinstance(result, Result) else ():
        module.warn(warning)
    module.exit_json(**{"invocation": invocation, **(result.as_dict() if isinstance(result, Result) else result)})
    raise AssertionError("exit_json returned")


#: Headers that say how a request is made and hold no secret, in lower case.
_ORDINARY_HEADERS = frozenset({
    "accept", "accept-charset", "accept-encoding", "accept-language", "access-control-request-headers", "access-control-request-method", "cache-control",
    "connection", "content-length", "content-type", "date", "dnt", "expect", "forwarded", "from", "host", "if-modified-since", "if-none-match", "origin",
    "pragma", "range", "referer", "sec-websocket-protocol", "sec-websocket-version", "te", "upgrade", "user-agent", "via", "x-forwarded-for",
    "x-forwarded-host", "x-forwarded-port", "x-forwarded-proto", "x-real-ip", "x-request-id", "x-requested-with",
})  # fmt: skip
#: Ansible blanks a secret wherever its letters stand in the result. So few letters are no secret, and stand in every other word.
_SHORT = 6
_HIDDEN = "VALUE_SPECIFIED_IN_NO_LOG_PARAMETER"


def _keep_words_readable(module: AnsibleModule) -> None:
    """Takes the values of headers that are no secrets out of what Ansible blanks in a result: ``https``, ``1``, ``localhost``.

    The arguments themselves show no value of any header; see ``_without_passwords``.
    """
    secrets = {str(module.params.get(name)) for name, spec in module.argument_spec.items() if spec.get("no_log") and name != "headers"}
    for headers in _headers(module.params):
        for name, value in headers.items():
            ordinary = str(name).lower() in _ORDINARY_HEADERS or len(str(value)) < _SHORT
            if ordinary and str(value) not in secrets:
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


def _without_passwords(value: t.Any) -> t.Any:
    """Arguments as they may be shown: every URL in them without its password, every header without its value."""
    if isinstance(value, dict):
        return {
            key: dict.fromkeys(entry, _HIDDEN) if key == "headers" and isinstance(entry, dict) else _without_passwords(entry) for key, entry in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_without_passwords(entry) for entry in value]
    return masked(value) if isinstance(value, str) and "://" in value else value
