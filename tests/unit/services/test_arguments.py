# SPDX-License-Identifier: GPL-3.0-or-later
"""The module option ``services`` is what its documentation says."""

from __future__ import annotations

import importlib.util
import typing as t

import pytest
import yaml

from tests.support.collection import COLLECTION
from wheels_ops.services.arguments import SERVICES
from wheels_ops.services.model import parse_services


def documented() -> t.Dict[str, t.Any]:
    path = COLLECTION / "plugins/doc_fragments/services.py"
    spec = importlib.util.spec_from_file_location("documented_services", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    option: t.Dict[str, t.Any] = yaml.safe_load(module.ModuleDocFragment.DOCUMENTATION)["options"]["services"]
    return option


def differences(option: t.Mapping[str, t.Any], page: t.Mapping[str, t.Any], path: str = "services") -> t.List[str]:
    """Where specification and documentation of an option, and of those below it, are not the same."""
    found = [
        f"{path}.{key}: {option.get(key)!r}, documented {page.get(key)!r}"
        for key in ("type", "elements", "required", "default", "choices")
        if option.get(key) != page.get(key)
    ]
    below, pages = option.get("options", {}), page.get("suboptions", {})
    if set(below) != set(pages):
        found.append(f"{path}: {sorted(set(below) ^ set(pages))} is on one side alone")
    return found + [
        line for name in below if name in pages for line in differences(below[name], pages[name], f"{path}.{name}")
    ]


def test_services_are_documented_as_they_are() -> None:
    # Each module says for itself whether it goes without any.
    assert differences({**SERVICES, "default": []}, documented()) == []


@pytest.mark.parametrize("kind", SERVICES["options"]["gate"]["options"]["type"]["choices"])
def test_every_kind_of_gate_is_one_that_the_library_parses(kind: str) -> None:
    gate = {"type": kind, "url": "http://127.0.0.1/health" if kind == "http" else "redis://127.0.0.1/0", "port": 80}
    (service,) = parse_services([{"name": "web", "gate": gate}])
    assert service.name == "web"
