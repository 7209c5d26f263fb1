# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a killed installation or restore left in the trees of others, known from the journal that was
written before it.
"""

from __future__ import annotations

import re
import typing as t
from pathlib import Path

from ..core.results import OpsError
from ..host import files


def place_of(name: str, entry: t.Mapping[str, t.Any]) -> t.Tuple[Path, str]:
    """The real path of a file in a manifest, and the directory below which no link is followed to it.

    Raises ``OpsError`` for a damaged entry.
    """
    root, relative = entry.get("root", "/"), entry.get("relative", name.lstrip("/"))
    if (
        not isinstance(root, str)
        or not isinstance(relative, str)
        or not root.startswith("/")
        or relative.startswith("/")
        or not relative
    ):
        raise OpsError(
            f"The journal's entry for {name} is damaged.",
            hint="Nothing was changed. Restore the state directory from a backup.",
        )
    return Path(root, relative), root


def token_of(manifest: t.Mapping[str, t.Any]) -> str:
    """The token of a deployment's temporary files; empty where it has none."""
    token = manifest.get("token")
    return token if isinstance(token, str) and re.fullmatch(r"[0-9a-f]{8}", token) else ""


def sweep(
    state_dir: t.Union[str, Path], manifests: t.Iterable[t.Mapping[str, t.Any]], *, check_mode: bool = False
) -> t.List[str]:
    """Removes the temporary files of writers that are dead, in the trees that the manifests name and in the state
    directory itself.

    In a tree, a file is ours only under the very name that a manifest records; what a living run writes is locked and
    stays. Gives the paths below the trees of what was, or in check mode would be, removed. An entry that cannot be
    understood or reached is passed over. Directories that a killed installation made are removed by
    ``backend_patch.restore``.
    """
    if not check_mode:
        for place in (
            Path(state_dir),
            *Path(state_dir).glob("deployments/*"),
            *Path(state_dir).glob("deployments/*/originals"),
        ):
            files.sweep_directory(place)
    swept = []
    for manifest in manifests:
        token, entries = token_of(manifest), manifest.get("files")
        if not token or not isinstance(entries, dict):
            continue
        for name, entry in sorted(entries.items()):
            try:
                path, root = place_of(name, entry)
                if files.sweep(path, token, below=root, dry=check_mode):
                    swept.append(str(path.with_name(files.temporary_name(path.name, token))))
            except (AttributeError, TypeError, ValueError, OpsError):
                continue
    return swept
