# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is wrong with the variables that a site has set."""

from __future__ import annotations

DOCUMENTATION = r"""
name: setting_problems
short_description: List the variables of this collection that are set and cannot be used
version_added: 1.1.0
description:
  - Evaluates every variable of a host that begins with C(wheels_ops_), and every option of the collection's roles that
    is set, and gives one
    sentence for each that cannot be evaluated or is of another kind than it has.
  - Warns about a variable that begins with C(wheels_ops_) and that this collection does not know, and says which one is
    likely meant.
    A variable that another variable names in its value is taken for the site's own.
  - No sentence repeats a value.
  - Use it at the start of a play, as the first task. Inside a role it would also evaluate that role's defaults, which
    may need its files.
options:
  _terms:
    description: None are taken.
    type: list
    elements: str
    required: false
author:
  - The wheels.ops maintainers (@wheels-ops)
"""

EXAMPLES = r"""
- name: Require variables that can be evaluated
  ansible.builtin.assert:
    that: setting_problems | length == 0
    fail_msg: "{{ setting_problems }}"
  vars:
    setting_problems: "{{ query('wheels.ops.setting_problems') }}"
"""

RETURN = r"""
_raw:
  description: The sentences, sorted by the name of the variable.
  type: list
  elements: str
"""

import typing as t

from ansible.plugins.lookup import LookupBase
from ansible.utils.display import Display
from ansible_collections.wheels.ops.plugins.plugin_utils import settings


class LookupModule(LookupBase):
    """See DOCUMENTATION."""

    def run(self, terms: t.Sequence[str], variables: t.Any = None, **kwargs: t.Any) -> t.List[str]:
        for sentence in settings.unknown_variables(variables):
            Display().warning(sentence)
        return settings.problems(self._templar, variables)
