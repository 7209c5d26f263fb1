#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: disk_cleanup
short_description: Delete old files until usage is below a target
version_added: 1.0.0
description:
  - Removes old files from the named sources, source after source in the order given, the oldest file first, and stops
    when every target is met.
    Without targets everything that the sources name goes.
  - Works through directory descriptors only. A symbolic link, a rename or a mount that appears meanwhile leads nowhere
    else.
  - A source that cannot be cleaned (a read-only filesystem, a directory without the sticky bit) is named in RV(refused)
    after the others were cleaned. One that is not there is warned of, and an error where no other is.
  - Leaves a directory alone on which somebody holds a BSD lock (flock(1)), as C(systemd-tmpfiles) does.
  - Never removes a file that somebody has open (the kernel says so by a lease), a hard link, a link, a socket, a
    protected path, nor anything in a
    directory that holds a database or a repository (C(PG_VERSION), C(.git)).
  - Memory is bounded however many files there are. A scan that takes longer than a tenth of a second is shared with a
    second process, where the
    host has more than one processor.
options:
  sources:
    description: Where files may go, in the order in which they may.
    type: list
    elements: dict
    required: true
    suboptions:
      kind:
        description:
          - V(files) and V(core_dumps) are removed file by file.
          - V(journal) is vacuumed by C(journalctl). Archived journals that begin longer than O(sources[].age) ago go,
            the oldest first and no more than the targets lack. The journal that is written to stays.
          - V(packages), downloaded ones, are cleared by C(apt-get clean).
          - V(backups) are originals of our own deployments that were rolled back. What a rollback may need stays.
        type: str
        choices: [files, core_dumps, journal, packages, backups]
        default: files
      path:
        description:
          - A directory. System directories and homes are refused, and so is one where everyone may rename files.
          - The kinds other than V(files) have a usual place each.
        type: path
      age:
        description: Only files that are older, for example V(24h) or V(7d). A bare number is in seconds.
        type: str
        default: "0"
      age_by:
        description: The times that count. A file is as old as the newest of them. C(ctime) cannot be set back by
          anyone.
        type: list
        elements: str
        choices: [atime, mtime, ctime]
        default: [atime, mtime, ctime]
      patterns:
        description: Only files with a name that one of these globs matches. By default all, and C(core*) for
          V(core_dumps).
        type: list
        elements: str
      exclude:
        description: No file with a name that one of these globs matches, and nothing in a directory with such a name.
        type: list
        elements: str
        default: []
      keep_newest:
        description: So many of the newest matching files stay, whatever their age.
        type: int
        default: 0
      min_size:
        description: Only files that take at least so much on disk, for example V(1MB).
        type: str
        default: "0"
      recurse:
        description: Enter directories below.
        type: bool
        default: true
      remove_empty:
        description:
          - Remove also empty directories and dangling links that are as old and whose names match, each inside before
            what is around it. A directory that this run empties counts as old as it was before.
          - Not the directory of O(sources[].path) itself, nor one that a process works in, nor what is empty as a rule
            (C(lost+found), C(.X11-unix), C(systemd-private-*)).
        type: bool
        default: false
  targets:
    description: What is to be reached.
    type: list
    elements: dict
    default: []
    suboptions:
      filesystem:
        description: A path on the filesystem that is meant.
        type: path
      percent:
        description: At most so much in use, as C(df) counts it, or of O(targets[].budget).
        type: float
      inodes_percent:
        description: At most so many inodes in use.
        type: float
      free_bytes:
        description: At least so much free for users, for example V(5GB).
        type: str
      directories:
        description: Directories that have a budget together, in place of a filesystem.
        type: list
        elements: path
      budget:
        description: What O(targets[].directories) may hold together, for example V(150MB).
        type: str
  release_deleted:
    description:
      - Globs for the names of logs. One that was deleted, but is still open and appended to, is emptied where its name
        matches.
      - Other deleted files are only named in RV(deleted_open), with their owner.
    type: list
    elements: str
    default: []
  deleted_min_size:
    description: Name deleted files that are still open in RV(deleted_open) from so many bytes on disk, for example
      V(4K). V(0) names all.
    type: str
    default: 1M
  protect:
    description: Absolute paths that are neither entered nor removed.
    type: list
    elements: path
    default: []
notes:
  - Run it as root, or as the owner of the files. Other users see neither all files nor who has them open.
author:
  - The wheels.ops maintainers (@wheels-ops)
extends_documentation_fragment:
  - wheels.ops.attributes
attributes:
  diff_mode:
    support: full
seealso:
  - module: wheels.ops.log_rotate
"""

EXAMPLES = r"""
- name: Bring the root filesystem under 75 % at the cost of old temporary files
  wheels.ops.disk_cleanup:
    sources:
      - path: /var/tmp
        age: 7d
      - path: /tmp
        age: 24h
        exclude: ["systemd-private-*"]
    targets:
      - filesystem: /
        percent: 75
        inodes_percent: 80

- name: Remove finished uploads of yesterday
  wheels.ops.disk_cleanup:
    sources:
      - path: /opt/backend/tmp
        age: 24h
        age_by: [mtime]
        patterns: ["upload-*"]
"""

RETURN = r"""
before:
  description: Every target before, as it was measured, and the used bytes of every source's filesystem.
  returned: success
  type: dict
  sample: {targets: {/: {percent: 84.1, used_bytes: 84100000000, available_bytes: 15900000000, inodes_percent: 12.0,
    met: false}}}
after:
  description: The same afterwards, measured; in check mode what is to be expected.
  returned: success
  type: dict
actions:
  description: One entry for every source.
  returned: success
  type: list
  elements: dict
  contains:
    action:
      description: V(delete), or V(release) for a deleted log that was emptied.
      type: str
    target:
      description: The directory.
      type: str
    changed:
      description: Whether any file was removed.
      type: bool
    files:
      description: Files removed, or that would be.
      type: int
    directories:
      description: Empty directories removed, or that would be.
      type: int
    links:
      description: Dangling links removed, or that would be.
      type: int
    bytes_freed:
      description: Bytes on disk of all of them.
      type: int
    candidates:
      description: Files that were old enough.
      type: int
    skipped:
      description: Why something was left. V(young), V(kept), V(open), V(excluded), V(protected), V(locked),
        V(hardlink), V(special), V(empty_directory), V(dangling_link), V(mount), V(data), V(changed), V(refused),
        V(unseen), V(deep), V(unreadable).
      type: dict
files:
  description: All files removed, or that would be.
  returned: success
  type: int
bytes_freed:
  description: Their bytes on disk.
  returned: success
  type: int
deleted_open:
  description: Files without a name that take room until their owner lets go. C(path), C(bytes), C(pid), C(command),
    C(unit). Largest first. An image behind a loop device has no C(pid), and the device for C(command).
  returned: success
  type: list
  elements: dict
missed:
  description: Targets that are not met.
  returned: success
  type: list
  elements: str
refused:
  description: Sources that could not be cleaned, and why. The module fails then, after the others were cleaned.
  returned: failure
  type: dict
unreadable_processes:
  description: Processes whose open files this user may not see.
  returned: success
  type: int
duration_ms:
  description: How long it took.
  returned: success
  type: float
diff:
  description: The first 200 files of every source that were removed, or would be.
  returned: success
  type: list
  elements: dict
msg:
  description: One sentence for people.
  returned: always
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wheels.ops.plugins.module_utils._ansible import run
from ansible_collections.wheels.ops.plugins.module_utils.remedies.disk import cleanup


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "sources": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "kind": {
                        "type": "str",
                        "choices": ["files", "core_dumps", "journal", "packages", "backups"],
                        "default": "files",
                    },
                    "path": {"type": "path"},
                    "age": {"type": "str", "default": "0"},
                    "age_by": {
                        "type": "list",
                        "elements": "str",
                        "choices": ["atime", "mtime", "ctime"],
                        "default": ["atime", "mtime", "ctime"],
                    },
                    "patterns": {"type": "list", "elements": "str"},
                    "exclude": {"type": "list", "elements": "str", "default": []},
                    "keep_newest": {"type": "int", "default": 0, "no_log": False},
                    "min_size": {"type": "str", "default": "0"},
                    "recurse": {"type": "bool", "default": True},
                    "remove_empty": {"type": "bool", "default": False},
                },
            },
            "targets": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "filesystem": {"type": "path"},
                    "percent": {"type": "float"},
                    "inodes_percent": {"type": "float"},
                    "free_bytes": {"type": "str"},
                    "directories": {"type": "list", "elements": "path"},
                    "budget": {"type": "str"},
                },
            },
            "release_deleted": {"type": "list", "elements": "str", "default": []},
            "deleted_min_size": {"type": "str", "default": "1M"},
            "protect": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )
    options = module.params
    run(
        module,
        lambda: cleanup.run(
            options["sources"],
            options["targets"],
            protect=options["protect"],
            release_deleted=options["release_deleted"],
            deleted_min_size=options["deleted_min_size"],
            check_mode=module.check_mode,
            want_diff=module._diff,
        ),
    )


if __name__ == "__main__":
    main()
