# SPDX-License-Identifier: GPL-3.0-or-later
"""Sphinx's settings for the site. ``make site`` writes the pages that it reads (tests/site.py)."""

from __future__ import annotations

import os

import yaml

_HERE = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(_HERE, "../collections/wheels/ops/galaxy.yml"), encoding="utf-8") as _file:
    version = release = yaml.safe_load(_file)["version"]

project = "wheels.ops"
author = "The wheels.ops maintainers"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
# The anchors that GitHub gives to headings; a link to one that does not exist fails the build.
myst_heading_anchors = 4
# Text in backquotes is code, never a reference; nothing is highlighted as Python by default.
highlight_language = "none"
html_theme = "furo"
html_title = f"wheels.ops {version}"
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
html_use_index = False
html_last_updated_fmt = None
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
html_static_path = [os.path.join(_HERE, "static")]
html_css_files = ["site.css"]
