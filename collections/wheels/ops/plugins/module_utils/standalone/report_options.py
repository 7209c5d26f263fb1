# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""In which forms the monitor and ``wheels-ops health`` give their report. Imports nothing that takes long."""

from __future__ import annotations

import argparse

from ..health.subjects import NAMES


def add(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("--json", action="store_true", help="the whole report as JSON")
    parser.add_argument(
        "--output", default="", metavar="FILE", help="also write the JSON there, as a whole, readable by its owner only"
    )
    parser.add_argument(
        "--html", default="", metavar="FILE", help="also write the report as one HTML page, readable by its owner only"
    )
    parser.add_argument(
        "--prometheus",
        default="",
        metavar="FILE",
        help="also write the metrics there, for the textfile collector of node_exporter (the name ends in .prom)",
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing where everything is healthy")
    parser.add_argument("--only", default="", metavar="CHECK,...", help=f"measure only these of: {', '.join(NAMES)}")
