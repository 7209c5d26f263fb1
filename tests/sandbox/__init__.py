# SPDX-License-Identifier: GPL-3.0-or-later
"""The sandbox: the whole backend on this machine, as real processes under one directory."""
