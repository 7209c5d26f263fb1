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


def _without_passwords(value: t.Any) -> t.Any:
    """Arguments as they may be shown: every URL in them without its password."""
    if isinstance(value, dict):
        return {key: _without_passwords(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_passwords(entry) for entry in value]
    return masked(value) if isinstance(value, str) and "://" in value else value
