# SPDX-License-Identifier: GPL-3.0-or-later
"""The monitor on a host and ``wheels-ops health`` give their report in the same forms."""

from __future__ import annotations

import argparse

from wheels_ops import command_line
from wheels_ops.standalone import monitor, report_options


def test_both_programs_have_every_form() -> None:
    shared = argparse.ArgumentParser(add_help=False)
    report_options.add(shared)
    forms = set(vars(shared.parse_args([])))
    assert forms == {"json", "output", "html", "prometheus", "quiet", "only"}
    assert forms <= set(vars(monitor.parser().parse_args([])))
    assert forms <= set(vars(command_line.parser().parse_args(["health"])))
