#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: health_report
short_description: Write the report of a run as JSON and HTML
version_added: 1.0.0
description:
  - Takes two results of M(wheels.ops.health_info), from before and after a run, and what was done in between.
    It writes C(before.json), C(after.json), C(done.json) and C(report.html) into O(dest), each readable by its owner
    alone.
  - Without O(before) it reports one result, as C(health.json), C(health.html), C(health.txt) and C(health.prom).
  - Run it on the controller with C(delegate_to=localhost).
extends_documentation_fragment:
  - wheels.ops.attributes
attributes:
  diff_mode:
    support: full
  idempotent:
    support: N/A
    description: A report is written anew each time and never counts as a change of a host.
options:
  before:
    description: The result of M(wheels.ops.health_info) before the run; empty to report O(after) alone.
    type: dict
    default: {}
  after:
    description: The result of M(wheels.ops.health_info) after the run.
    type: dict
    required: true
  done:
    description: What was done, in words, by the name of the check it cured.
    type: dict
    default: {}
  facts:
    description: Names and values for the head of the page, such as the deployment and its duration.
    type: dict
    default: {}
  title:
    description: The title of the page.
    type: str
    default: wheels.ops report
  host:
    description: The label C(host) of the metrics in C(health.prom), so that those of several hosts can lie together.
    type: str
    default: ""
    version_added: 1.1.0
  runbook_url:
    description: >-
      Where the runbooks are published, with C({name}) for the name of the page. Without it the page names the file in the
      repository, and the metrics name none.
    type: str
    default: ""
    version_added: 1.1.0
  dest:
    description:
      - The directory to write to; it is made where it does not exist. Nothing is written if it is empty.
      - Give an absolute path, as Ansible runs a module on the controller in the directory of the playbook.
    type: path
    default: ""
author:
  - The wheels.ops maintainers (@wheels-ops)
"""

EXAMPLES = r"""
- name: Write the report
  wheels.ops.health_report:
    before: "{{ health_before }}"
    after: "{{ health_after }}"
    dest: /home/deploy/reports
  delegate_to: localhost
"""

RETURN = r"""
table:
  description: The table of incidents, line by line, for a terminal; below it the outcome in words.
  returned: success
  type: list
  elements: str
remaining:
  description: One line for everything that is not healthy after the run.
  returned: success
  type: list
  elements: str
paths:
  description: The files that were, or would be, written.
  returned: success
  type: list
  elements: str
msg:
  description: Where the report lies.
  returned: always
  type: str
"""

import json
import os
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wheels.ops.plugins.module_utils._ansible import run
from ansible_collections.wheels.ops.plugins.module_utils.core.results import Result
from ansible_collections.wheels.ops.plugins.module_utils.host.files import make_directories, write_atomically
from ansible_collections.wheels.ops.plugins.module_utils.report import metrics, page, report, runbooks


def call(module: AnsibleModule) -> Result:
    options = module.params
    runbooks.require(options["runbook_url"])
    content = page.page(
        options["after"],
        before=options["before"] or None,
        remedies=options["done"],
        title=options["title"],
        facts=options["facts"],
        runbook_url=options["runbook_url"],
    )
    table = (
        report.text(options["before"], options["after"], options["done"])
        if options["before"]
        else report.listing(options["after"])
    )
    table += f"\n\n{report.summary(options['after'])}"
    if options["before"]:
        contents = {
            "before.json": json.dumps(options["before"], indent=1) + "\n",
            "after.json": json.dumps(options["after"], indent=1) + "\n",
            "done.json": json.dumps(options["done"], indent=1) + "\n",
            "report.html": content,
        }
    else:
        contents = {
            "health.json": json.dumps(options["after"], indent=1) + "\n",
            "health.txt": table + "\n",
            "health.prom": metrics.text(options["after"], options["host"], options["runbook_url"]),
            "health.html": content,
        }
    place = os.path.abspath(options["dest"]) if options["dest"] else ""
    paths = {name: Path(place) / name for name in contents} if place else {}
    if not module.check_mode:
        for name, path in paths.items():
            make_directories(path.parent)
            write_atomically(path, contents[name].encode("utf-8"))
    return Result(
        msg=(
            f"The report {'would be' if module.check_mode else 'is'} in {place}."
            if paths
            else "No report was asked for."
        ),
        extra={
            "table": table.splitlines(),
            "remaining": report.remaining(options["after"]),
            "paths": [str(path) for path in paths.values()],
        },
    )


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "before": {"type": "dict", "default": {}},
            "after": {"type": "dict", "required": True},
            "done": {"type": "dict", "default": {}},
            "facts": {"type": "dict", "default": {}},
            "title": {"type": "str", "default": "wheels.ops report"},
            "host": {"type": "str", "default": ""},
            "runbook_url": {"type": "str", "default": ""},
            "dest": {"type": "path", "default": ""},
        },
        supports_check_mode=True,
    )
    run(module, lambda: call(module))


if __name__ == "__main__":
    main()
