#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: host_library
short_description: Install the library of this collection on a host
version_added: 1.0.0
description:
  - Puts the library behind the modules of this collection into a directory of the host, for programs that run there
    without Ansible.
  - The files are those that Ansible sent with this module, so that the programs check and remedy exactly as the modules
    do.
  - The directory is replaced as a whole. One that holds anything else is refused.
  - An interrupted run is finished by the next one, which also removes what it left beside the directory.
extends_documentation_fragment:
  - wheels.ops.attributes
attributes:
  diff_mode:
    support: full
    description: Names the files that differ, each with the beginning of its digest.
options:
  path:
    description: The directory of the library; its last part is the name of the Python package, C(wheels_ops).
    type: path
    default: /opt/wheels-ops/lib/wheels_ops
  state:
    description:
      - V(present) makes the directory hold the library and nothing else.
      - V(absent) takes the directory away.
    type: str
    choices: [present, absent]
    default: present
  link_dir:
    description:
      - The directory in which O(links) are made, which may belong to another user. Without it no link is made.
      - A link of another user on the way is refused, whenever it is put there.
    type: str
    default: ""
    version_added: 1.1.0
  links:
    description: Symbolic links to make, or to remove, each path below O(link_dir) with its target. What is not ours is
      left alone, and named, but for a file that is no valid Python. It is put aside with the suffix C(.original), and put
      back with O(state=absent).
    type: dict
    default: {}
    version_added: 1.1.0
author:
  - The wheels.ops maintainers (@wheels-ops)
"""

EXAMPLES = r"""
- name: Install the library
  wheels.ops.host_library:
    path: /opt/wheels-ops/lib/wheels_ops
"""

RETURN = r"""
before:
  description: The number of C(files) before, and a digest of their C(content).
  returned: success
  type: dict
after:
  description: The same afterwards.
  returned: success
  type: dict
actions:
  description: What was, or would be, installed, updated or removed, with the number of C(files) that differ; C(tidy) is
    what an interrupted run left.
  returned: success
  type: list
  elements: dict
left_alone:
  description: One sentence for each of O(links) in whose place there is something else.
  returned: success
  type: list
  elements: str
  version_added: 1.1.0
msg:
  description: The outcome in one sentence.
  returned: always
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wheels.ops.plugins.module_utils._ansible import run
from ansible_collections.wheels.ops.plugins.module_utils.standalone import installation


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "default": "/opt/wheels-ops/lib/wheels_ops"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "link_dir": {"type": "str", "default": ""},
            "links": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    p = module.params
    options = {name: p[name] for name in ("state", "links", "link_dir")}
    run(module, lambda: installation.run(p["path"], **options, check_mode=module.check_mode, want_diff=module._diff))


if __name__ == "__main__":
    main()
