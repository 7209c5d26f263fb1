# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A variable that a site may set, or its default."""

from __future__ import annotations

DOCUMENTATION = r"""
name: setting
short_description: Give the value of a variable that may be set, or its default
version_added: 1.1.0
description:
  - Gives the value of the first of the named variables that is set, otherwise O(default). Without it, the default that
    this collection
    has for the first of them that it knows.
  - Unlike the filter C(default), it never takes the default in place of a variable that is set and cannot be
    evaluated, for example because it names a variable of a vault that is missing. That is an error which names both,
    also where the missing
    one is named by a variable in between, or stands inside a list or a dictionary.
  - A value of another kind than the variable has, such as a text in place of a list, is an error too.
  - What is of a whole run (C(wheels_ops_hosts), C(wheels_ops_serial)) is also found where the inventory has it for
    hosts, if all that
    have it agree.
  - A relative path on the controller (C(wheels_ops_report_dir)) is given as an absolute one, below the directory in
    which Ansible was started, never below the playbook or the collection.
  - No error repeats a value.
options:
  _terms:
    description: Names of variables, the one that counts first.
    type: list
    elements: str
    required: true
  default:
    description: What to give where none of them is set, in place of the default of this collection.
    type: raw
  shipped:
    description: Whether to give the default of this collection even where the variable is set.
    type: bool
    default: false
    version_added: 1.1.0
author:
  - The wheels.ops maintainers (@wheels-ops)
"""

EXAMPLES = r"""
- name: Measure the database where one is named
  wheels.ops.health_info:
    database_dsn: "{{ lookup('wheels.ops.setting', 'wheels_ops_database_dsn') }}"
"""

RETURN = r"""
_raw:
  description: The value.
  type: list
  elements: raw
"""

import os
import typing as t

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase
from ansible_collections.wheels.ops.plugins.plugin_utils import settings
from ansible_collections.wheels.ops.plugins.plugin_utils.shared_variables import ON_CONTROLLER, RUN_WIDE, SHARED


class LookupModule(LookupBase):
    """See DOCUMENTATION."""

    def run(self, terms: t.Sequence[str], variables: t.Any = None, **kwargs: t.Any) -> t.List[t.Any]:
        shipped = kwargs.pop("shipped", False)
        shared = [name for name in terms if name in SHARED]
        if kwargs.keys() - {"default"} or not terms or not ("default" in kwargs or shared):
            raise AnsibleError(
                "The lookup wheels.ops.setting takes names of variables, default and shipped."
                " Without default one of the names must be a shared variable (docs/variables.md)."
            )
        values = self._values(() if shipped else terms, variables)
        if not values and "default" in kwargs:
            return [kwargs["default"]]
        values = values or [settings.default_of(self._templar, variables, shared[0])]
        if ON_CONTROLLER.intersection(terms):
            return [os.path.abspath(os.path.expanduser(value)) if value else value for value in values]
        return values

    def _values(self, names: t.Iterable[str], variables: t.Any) -> t.List[t.Any]:
        """The value of the first that is set, in a list; empty where none is."""
        for name in names:
            if name in variables and (values := settings.values_of(self._templar, variables, name)):
                return values
            if name in RUN_WIDE and (values := settings.values_of_run(self._templar, variables, name)):
                return values
        return []
