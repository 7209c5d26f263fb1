# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds the collection's tarball, and with ``--release`` also the wheel, an SBOM, the changelog and checksums.

Only what git tracks gets in, with the modes that git has and the time of the commit (or SOURCE_DATE_EPOCH), whatever
lies about in the tree and whatever umask and clock the machine has.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import typing as t
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
COLLECTION = "collections/wheels/ops"


def output(*words: str, cwd: Path = REPOSITORY, **variables: str) -> str:
    """What a program prints; ends with its complaint where it fails."""
    # What a tool calls by its name is of the same environment.
    path = f"{Path(tool('python')).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    environment = {**os.environ, "PATH": path, **variables}
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def tool(name: str) -> str:
    """A program of the release's environment, otherwise of the one that runs this."""
    own = REPOSITORY / ".venv-release/bin" / name
    return str(own if own.exists() else Path(sys.executable).with_name(name))


def stage(place: Path) -> None:
    """Copies what git tracks, as it is in the tree; links stay links."""
    for line in output("git", "ls-files", "--stage", "-z").split("\0")[:-1]:
        mode, _blob, _stage_and_name = line.split(" ", 2)
        name = _stage_and_name.split("\t", 1)[1]
        source, target = REPOSITORY / name, place / name
        if not source.is_symlink() and not source.is_file():
            continue  # deleted in the tree
        target.parent.mkdir(parents=True, exist_ok=True)
        if mode == "120000":
            target.symlink_to(os.readlink(source))
        else:
            shutil.copyfile(source, target)
            target.chmod(0o755 if mode == "100755" else 0o644)


def name_addresses(place: Path, addresses: t.Mapping[str, str]) -> None:
    """Writes the release's addresses into the metadata of collection and wheel; the repository itself names none."""
    if not any(addresses.values()):
        return
    galaxy, project = place / COLLECTION / "galaxy.yml", place / "pyproject.toml"
    given = {name: text for name, text in addresses.items() if text}
    with galaxy.open("a", encoding="utf-8") as file:
        file.writelines(f"{name}: {json.dumps(text)}\n" for name, text in given.items())
    with project.open("a", encoding="utf-8") as file:
        file.write("\n[project.urls]\n")
        file.writelines(f"{name.capitalize()} = {json.dumps(text)}\n" for name, text in given.items())


def update_changelog(place: Path, version: str, epoch: int) -> None:
    """Turns the fragments into the version's entry, where there are any."""
    fragments = place / COLLECTION / "changelogs/fragments"
    if any(fragments.glob("*.y*ml")):
        date = datetime.datetime.fromtimestamp(epoch, datetime.timezone.utc).strftime("%Y-%m-%d")
        words = ["--version", version, "--date", date]
        output(tool("antsibull-changelog"), "release", *words, cwd=place / COLLECTION)


def build_collection(place: Path, target: Path, epoch: int) -> Path:
    with tempfile.TemporaryDirectory() as home:
        config = Path(home) / "ansible.cfg"  # that of the directory does not count
        config.touch()
        output(
            tool("ansible-galaxy"),
            "collection",
            "build",
            str(place / COLLECTION),
            "--output-path",
            home,
            ANSIBLE_HOME=home,
            ANSIBLE_CONFIG=str(config),
        )
        (built,) = Path(home).glob("*.tar.gz")
        path = target / built.name
        path.write_bytes(normalized(built, epoch))
    return path


def normalized(built: Path, epoch: int) -> bytes:
    """The same collection with its files in the order of their names, one time and no owner.

    ansible-galaxy lists files as the directory happens to have them, and MANIFEST.json has the checksum of that list.
    """
    contents: t.Dict[str, t.Tuple[tarfile.TarInfo, bytes]] = {}
    with tarfile.open(built) as tar:
        for member in tar.getmembers():
            file = tar.extractfile(member) if member.isfile() else None
            contents[member.name] = (member, file.read() if file else b"")
    files = json.loads(contents["FILES.json"][1])
    files["files"].sort(key=lambda entry: str(entry["name"]))
    listing = json.dumps(files, indent=1, sort_keys=True).encode()
    manifest = json.loads(contents["MANIFEST.json"][1])
    manifest["file_manifest_file"]["chksum_sha256"] = hashlib.sha256(listing).hexdigest()
    contents["FILES.json"] = (contents["FILES.json"][0], listing)
    contents["MANIFEST.json"] = (
        contents["MANIFEST.json"][0],
        json.dumps(manifest, indent=1, sort_keys=True).encode(),
    )
    # Galaxy reads the two from the front.
    order = ["MANIFEST.json", "FILES.json", *sorted(set(contents) - {"MANIFEST.json", "FILES.json"})]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in order:
            member, content = contents[name]
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.mode, entry.mtime = member.type, member.linkname, member.mode, epoch
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return gzip.compress(packed.getvalue(), mtime=epoch)


def build_wheel(place: Path, target: Path, epoch: int) -> Path:
    """Without isolation: the locked setuptools builds it."""
    before = set(target.glob("*.whl"))
    output(
        tool("python"),
        "-c",
        # The wheel's files have the modes of the copy, and new ones those of the umask.
        "import os, sys; os.umask(0o022); from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])",
        str(target),
        cwd=place,
        SOURCE_DATE_EPOCH=str(epoch),
    )
    (wheel,) = set(target.glob("*.whl")) - before
    return wheel


def write_sbom(place: Path, path: Path) -> None:
    """CycloneDX, of the locked libraries that a host gets."""
    output(
        tool("cyclonedx-py"),
        "requirements",
        str(place / "requirements/target.txt"),
        "--pyproject",
        str(place / "pyproject.toml"),
        "--output-reproducible",
        "--of",
        "JSON",
        "-o",
        str(path),
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.release", description=__doc__)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "build")
    parser.add_argument("--release", action="store_true", help="everything that is published, from a clean commit")
    for name in ("repository", "issues", "documentation", "homepage"):
        parser.add_argument(f"--{name}", default="", help=f"the address that the metadata names as {name}")
    options = parser.parse_args()
    addresses = {name: str(getattr(options, name)) for name in ("repository", "issues", "documentation", "homepage")}
    wrong = [text for text in addresses.values() if text and not re.fullmatch(r"https://[^\s/]+\S*", text)]
    if wrong:
        raise SystemExit(f"An address must begin with https://, got {wrong[0]!r}.")
    if options.release and not addresses["repository"]:
        raise SystemExit("Galaxy requires the repository: make release REPOSITORY=https://HOST/OWNER/NAME")
    if options.release and (changed := output("git", "status", "--porcelain", "--untracked-files=no").strip()):
        raise SystemExit(f"A release is built from a commit. Commit or discard first:\n{changed}")
    epoch = int(os.environ.get("SOURCE_DATE_EPOCH") or output("git", "log", "-1", "--format=%ct"))
    os.umask(0o022)
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory) / "source"
        stage(place)
        name_addresses(place, addresses)
        version = re.search(r"^version: (\S+)$", (place / COLLECTION / "galaxy.yml").read_text(), re.MULTILINE)
        if version is None:
            raise SystemExit("galaxy.yml names no version.")
        if options.release:
            update_changelog(place, version[1], epoch)
        paths = [build_collection(place, options.output, epoch)]
        if options.release:
            paths.append(build_wheel(place, options.output, epoch))
            sbom = options.output / f"wheels-ops-{version[1]}.cdx.json"
            write_sbom(place, sbom)
            changelog = options.output / f"wheels-ops-{version[1]}-CHANGELOG.md"
            shutil.copyfile(place / COLLECTION / "CHANGELOG.md", changelog)
            paths += [sbom, changelog]
            sums = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths)
            (options.output / "SHA256SUMS").write_text(sums)
            paths.append(options.output / "SHA256SUMS")
    print("\n".join(str(path) for path in paths))


if __name__ == "__main__":
    main()
