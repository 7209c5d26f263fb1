#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: managed_files
short_description: Install or restore patched files
version_added: 1.0.0
description:
  - Installs whole files, and marked blocks in files that are there, below one directory.
  - Before anything is replaced, the new tree is compiled and imported in a copy, under the application's own
    interpreter.
  - It is imported as uvicorn does, inside a running event loop. Where the import fails, that of the original files is
    tried. A release that fails alike with its own files is installed with a warning; any other is refused.
  - The application's code never runs as root unless it is root's; it runs as O(user), with a home and a temporary
    directory of its own, without
    the network where the host can do that and the import does not need it. A tree or an interpreter that a third user
    may write is refused.
  - No symbolic link below O(root) is followed, whenever it appears.
  - The original of every replaced file is kept in the state directory with its owner, mode and time of change.
  - An interrupted run is finished by the next one.
extends_documentation_fragment:
  - wheels.ops.attributes
  - wheels.ops.service_manager
attributes:
  check_mode:
    support: full
    details:
      - Nothing of the application is executed in check mode unless O(verify_in_check_mode); RV(proof) says what was
        left out.
  diff_mode:
    support: full
options:
  state:
    description:
      - V(present) installs O(files) and O(blocks).
      - V(restored) restores what the deployment O(deployment_id) replaced.
    type: str
    choices: [present, restored]
    default: present
  deployment_id:
    description:
      - Under which deployment the originals are kept; it must have been begun with M(wheels.ops.deployment).
      - For O(state=restored) the newest that is in force, if empty.
    type: str
    default: ""
  state_dir:
    description: Where the journal and the originals lie.
    type: path
    default: /var/lib/wheels-ops
  root:
    description: The directory that O(files) and O(blocks) are relative to. Needed for O(state=present).
    type: path
  files:
    description: The content of every file by its path relative to O(root).
    type: dict
    default: {}
  blocks:
    description: The lines of our block by the path, relative to O(root), of the file that gets it.
    type: dict
    default: {}
  optional_blocks:
    description: Like O(blocks), for files that a release of the backend may lack.
    type: dict
    default: {}
  mode:
    description: The permissions of files that were not there before, as an octal number in quotes.
    type: str
    default: "0644"
  interpreter:
    description: The Python that the application runs under, for the import check.
    type: path
    default: ""
  import_module:
    description: The module that must import in the copy, such as V(app.main). Empty for no import check, as for files
      that are not code.
    type: str
    default: ""
  user:
    description:
      - The user, by name or number, as whom the application is compiled and imported.
      - If empty, the user of O(environment_of_service) where it runs, otherwise the owner of O(root). Never root where
        another user owns the code.
    type: str
    default: ""
  verify_in_check_mode:
    description: Compile and import in check mode as well, which executes the application's code.
    type: bool
    default: false
  environment_of_service:
    description:
      - Import with the environment of this running service, so that its settings are found.
      - Its interpreter is taken as well where O(interpreter) is empty. Without effect where the service does not run.
    type: str
    default: ""
  import_environment:
    description:
      - Environment variables for the import, over those of O(environment_of_service).
      - Not for secrets, which O(environment_of_service) brings along unseen.
    type: dict
    default: {}
  force:
    description:
      - Replace also what somebody else changed after we installed it. A copy is kept.
      - With O(state=restored) files that were replaced whole are restored; what is around our block in a file of the
        backend's own stays.
    type: bool
    default: false
  full_diff:
    description:
      - Whether a diff has every line. Otherwise it has a summary of one line for each file, and in full only what is
        done to files of the backend's own, such as O(blocks).
      - The summary comes first in either case.
    type: bool
    default: true
    version_added: 1.1.0
author:
  - The wheels.ops maintainers (@wheels-ops)
"""

EXAMPLES = r"""
- name: Install the patched CORS configuration
  wheels.ops.managed_files:
    deployment_id: "20250730T0211"
    root: /production
    files:
      app/core/cors_config.py: "{{ lookup('ansible.builtin.file', 'cors_config.py', rstrip=false) }}"
    interpreter: /production/venv/bin/python
    import_module: app.main

- name: Restore the original files
  wheels.ops.managed_files:
    state: restored
"""

RETURN = r"""
deployment_id:
  description: The deployment that keeps the originals.
  returned: success
  type: str
actions:
  description: One entry for each file that was, or would be, installed, replaced, restored or removed.
  returned: success
  type: list
  elements: dict
before:
  description: SHA-256 of every file that changes, null where there was none.
  returned: success
  type: dict
after:
  description: SHA-256 of every file that changes, afterwards.
  returned: success
  type: dict
proof:
  description: What was compiled and imported before anything was replaced. Empty where nothing changes, or without
    O(import_module).
  returned: O(state=present)
  type: dict
  contains:
    compiled:
      description: How many files were compiled.
      type: int
    imported:
      description: The module that was imported; empty where that was left out, or where the release cannot be imported
        with its own files either.
      type: str
    interpreter:
      description: The application's Python.
      type: str
    user:
      description: As whom its code ran.
      type: str
    network:
      description: V(off) or V(on), whether the import had the network; V(on) where the host cannot withhold it or the
        import needs it.
      type: str
    left_out:
      description: What was not verified, and why; empty where everything was.
      type: str
database_access:
  description:
    - By which variable of its environment the service of O(environment_of_service) reaches its database, V(DATABASE_URL)
      or V(SUPABASE_URL); V(none) where neither is set.
    - Empty where the service does not run, or is not asked for.
  returned: O(state=present)
  type: str
  version_added: 1.1.0
kept:
  description: Files that were not restored, because somebody changed them since. Where one of them had been replaced
    whole, the deployment ends as partly rolled back, and can be rolled back again with O(force).
  returned: O(state=restored)
  type: list
  elements: str
replaced:
  description: With O(force), files that were restored although somebody changed them since, each with the path of a
    copy.
  returned: O(state=restored)
  type: dict
msg:
  description: The outcome in one sentence.
  returned: always
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wheels.ops.plugins.module_utils._ansible import run
from ansible_collections.wheels.ops.plugins.module_utils.core.results import Result
from ansible_collections.wheels.ops.plugins.module_utils.host.processes import environment_of, interpreter_of, user_of
from ansible_collections.wheels.ops.plugins.module_utils.remedies import backend_patch
from ansible_collections.wheels.ops.plugins.module_utils.services import arguments
from ansible_collections.wheels.ops.plugins.module_utils.services.manager import from_params


def call(module: AnsibleModule) -> Result:
    options = module.params
    modes = {"check_mode": module.check_mode, "want_diff": module._diff, "full_diff": module.params["full_diff"]}
    if options["state"] == "restored":
        name = options["deployment_id"] or backend_patch.latest(options["state_dir"])
        return backend_patch.restore(options["state_dir"], name, force=options["force"], **modes)
    request = backend_patch.Request(
        root=options["root"],
        files={path: content.encode("utf-8") for path, content in options["files"].items()},
        blocks=options["blocks"],
        optional_blocks=options["optional_blocks"],
        mode=int(options["mode"], 8),
        force=options["force"],
    )
    interpreter, environment, service_uid = options["interpreter"], {}, None
    if options["environment_of_service"] and options["import_module"]:
        manager = from_params(options)
        pid = manager.states([options["environment_of_service"]])[options["environment_of_service"]].pid
        if pid:
            environment, service_uid = environment_of(pid), user_of(pid)
            interpreter = interpreter or interpreter_of(pid)
    proof = backend_patch.Proof(
        interpreter=interpreter,
        module=options["import_module"],
        environment={**environment, **{name: str(value) for name, value in options["import_environment"].items()}},
        own_environment=environment,
        user=options["user"],
        service_uid=service_uid,
        in_check_mode=options["verify_in_check_mode"],
    )
    result = backend_patch.install(options["state_dir"], options["deployment_id"], request, proof, **modes)
    result.extra["database_access"] = backend_patch.database_access(environment)
    return result


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "restored"], "default": "present"},
            "deployment_id": {"type": "str", "default": ""},
            "state_dir": {"type": "path", "default": "/var/lib/wheels-ops"},
            "root": {"type": "path"},
            "files": {"type": "dict", "default": {}},
            "blocks": {"type": "dict", "default": {}},
            "optional_blocks": {"type": "dict", "default": {}},
            "mode": {"type": "str", "default": "0644"},
            "interpreter": {"type": "path", "default": ""},
            "import_module": {"type": "str", "default": ""},
            "user": {"type": "str", "default": ""},
            "verify_in_check_mode": {"type": "bool", "default": False},
            "environment_of_service": {"type": "str", "default": ""},
            **arguments.MANAGER,
            "import_environment": {"type": "dict", "default": {}},
            "force": {"type": "bool", "default": False},
            "full_diff": {"type": "bool", "default": True},
        },
        required_if=[("state", "present", ("root", "deployment_id"))],
        supports_check_mode=True,
    )
    run(module, lambda: call(module))


if __name__ == "__main__":
    main()
