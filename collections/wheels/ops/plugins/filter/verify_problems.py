# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What keeps a host from being verified."""

from __future__ import annotations

DOCUMENTATION = r"""
name: verify_problems
short_description: List what keeps a host from being verified
version_added: 1.1.0
description:
  - Gives one sentence for each check that fails, and for each file that is not as its deployment left it.
  - Where nothing at all was measured, says so.
positional: deployed
options:
  _input:
    description: The health report of M(wheels.ops.health_info).
    type: dict
    required: true
  deployed:
    description: The result of M(wheels.ops.deployment) with O(wheels.ops.deployment#module:state=queried).
    type: dict
    required: true
author:
  - The wheels.ops maintainers (@wheels-ops)
"""

EXAMPLES = r"""
- name: Require a healthy host
  ansible.builtin.assert:
    that: problems | length == 0
    fail_msg: "{{ problems }}"
  vars:
    problems: "{{ health | wheels.ops.verify_problems(deployed) }}"
"""

RETURN = r"""
_value:
  description: The sentences; empty where the host is verified.
  type: list
"""

import typing as t

from ansible_collections.wheels.ops.plugins.filter.check_lines import check_lines


def verify_problems(health: t.Mapping[str, t.Any], deployed: t.Mapping[str, t.Any]) -> t.List[str]:
    problems = check_lines(health["checks"], health["failing"], status=True)
    if deployed["drifted"]:
        problems.append(
            f"files: {', '.join(deployed['drifted'])}: not as the deployment left them. Run the playbook deploy; it replaces what"
            " somebody changed only with wheels_ops_force=true."
        )
    for each in deployed["partly_rolled_back"]:
        pairs = ", ".join(f"{path} (original: {original or 'none'})" for path, original in each["files"].items())
        if pairs:
            problems.append(
                f"files: deployment {each['id']} is partly rolled back; somebody changed {pairs}. For the originals, keeping a copy of"
                " what is there: ansible-playbook -i INVENTORY playbooks/rollback.yml -e wheels_ops_force=true"
            )
    if deployed["unfinished"]:
        problems.append(
            f"files: deployment {deployed['unfinished']} was not ended. Where no run works here: ansible-playbook"
            " -i INVENTORY playbooks/deploy.yml finishes it, ansible-playbook -i INVENTORY playbooks/rollback.yml rolls it back."
        )
    problems += [f"{entry['path']} is damaged." for entry in deployed["damaged"]]
    if all(check["status"] == "skipped" for check in health["checks"]):
        problems.append(str(health["msg"]))
    return problems


class FilterModule:
    """See DOCUMENTATION."""

    def filters(self) -> t.Dict[str, t.Callable[..., t.Any]]:
        return {"verify_problems": verify_problems}
