# SPDX-License-Identifier: GPL-3.0-or-later
"""``make compatibility``: health, deploy, verify and roll back on the sandbox with each ansible-core and Python of the
controller, and docs/compatibility.md with what ran.

A cell is ``CORE:PYTHON``, such as ``2.18:3.11``. Its Python is on the path or pyenv's, its ansible-core comes from the
package index, and its environment stays in .cache/compatibility. A cell that cannot be made here is not in the table.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
import typing as t
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PLACE = REPOSITORY / ".cache/compatibility"
PAGE = REPOSITORY / "docs/compatibility.md"
#: What Ansible itself supports: the oldest and the newest Python of each ansible-core on a controller.
CELLS = ("2.16:3.10", "2.17:3.10", "2.18:3.11", "2.19:3.11", "2.19:3.13", "2.20:3.12", "2.21:3.12", "2.21:3.13")
RUNS = (("health",), ("deploy", "--check"), ("deploy",), ("verify",), ("rollback",))
HEADER = """# Compatibility

Which ansible-core and Python of the controller ran whole playbooks on the sandbox: `make compatibility`, or
`make compatibility CELLS="2.18:3.11"` for some. The modules themselves run in the Python of `wheels_ops_venv`. What is
not in the table was not run. `requires_ansible` is the oldest that the whole test suite runs with; an older one in the
table works as far as it says, and Ansible warns.

| ansible-core | Python | health | deploy --check | deploy | verify | rollback |
| --- | --- | --- | --- | --- | --- | --- |
"""


def interpreter(version: str) -> t.Optional[str]:
    places = [
        shutil.which(f"python{version}"),
        *map(str, sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))),
    ]
    for place in reversed([one for one in places if one]):
        if subprocess.run([place, "-c", "import venv"], capture_output=True, check=False).returncode == 0:
            return place
    return None


def environment_of(core: str, python: str) -> t.Optional[Path]:
    """The directory of the cell's programs; None where it cannot be made here."""
    venv = PLACE / f"{core}-{python}"
    program = interpreter(python)
    if program is None:
        return None
    uv = str(REPOSITORY / ".venv/bin/uv")
    if not (venv / "bin/ansible-playbook").exists():
        install = [uv, "pip", "install", "--quiet", "--python", str(venv / "bin/python"), f"ansible-core=={core}.*"]
        for words in ([uv, "venv", "--quiet", "--clear", "--python", program, str(venv)], install):
            if subprocess.run(words, check=False).returncode:
                return None
    return venv / "bin"


def run(programs: Path, words: t.Sequence[str], log: Path) -> str:
    """``ok`` with the seconds that it took, or the exit status; what was said is in the log."""
    start = time.monotonic()
    done = subprocess.run(
        [
            str(programs / "ansible-playbook"),
            *("-i", "inventories/sandbox", f"playbooks/{words[0]}.yml", *words[1:]),
            # The sandbox is a host whose Python does not depend on the controller's.
            *("-e", f"wheels_ops_venv={REPOSITORY}/.venv"),
            *("-e", f"ansible_python_interpreter={REPOSITORY}/.venv/bin/python"),
        ],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
            "ANSIBLE_HOME": str(REPOSITORY / ".ansible"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    log.write_text(done.stdout + done.stderr, encoding="utf-8")
    print(f"  {' '.join(words)}: {done.returncode} after {time.monotonic() - start:.0f} s ({log})", flush=True)
    return "passed" if done.returncode == 0 else f"failed ({done.returncode})"


def version_of(programs: Path) -> t.Tuple[str, str]:
    core = subprocess.run([str(programs / "ansible"), "--version"], capture_output=True, text=True, check=True).stdout
    python = subprocess.run([str(programs / "python"), "-V"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"core ([\w.]+)", core)
    return (match[1] if match else "?"), python.split()[1]


def rows_of(page: Path) -> t.Dict[t.Tuple[str, ...], str]:
    """The rows that the page has, by minor version of core and Python."""
    lines = page.read_text(encoding="utf-8").splitlines() if page.exists() else []
    return {key_of(line): line for line in lines if re.match(r"\| \d", line)}


def key_of(row: str) -> t.Tuple[str, ...]:
    """By number, so that 3.9 stands before 3.10."""
    core, python = (cell.strip() for cell in row.split("|")[1:3])
    return tuple(f"{int(number):04d}" for number in [*core.split(".")[:2], *python.split(".")[:2]])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.compatibility", description=__doc__)
    parser.add_argument("cells", nargs="*", default=CELLS, metavar="CORE:PYTHON")
    names = [" ".join(words) for words in RUNS]
    parser.add_argument("--only", choices=names, action="append", help="these playbooks; the rest keeps its result")
    options = parser.parse_args()
    rows = rows_of(PAGE)
    failed = False
    for cell in options.cells:
        core, _colon, python = cell.partition(":")
        programs = environment_of(core, python)
        if programs is None:
            print(f"{cell}: cannot be made here, left out")
            continue
        print(f"{cell}:", flush=True)
        log = PLACE / f"{core}-{python}"
        versions = version_of(programs)
        key = key_of(f"| {' | '.join(versions)} |")
        before = [text.strip() for text in rows[key].split("|")[3:-1]] if key in rows else ["not run"] * len(RUNS)
        results = [
            run(programs, words, Path(f"{log}-{'-'.join(words)}.log")) if name in (options.only or names) else result
            for name, words, result in zip(names, RUNS, before)
        ]
        failed = failed or any(result.startswith("failed") for result in results)
        rows[key] = f"| {' | '.join([*versions, *results])} |"
        PAGE.write_text(HEADER + "\n".join(rows[key] for key in sorted(rows)) + "\n", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
