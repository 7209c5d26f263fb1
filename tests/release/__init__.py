# SPDX-License-Identifier: GPL-3.0-or-later
"""``make release``: what is published, bit for bit the same from the same commit."""
