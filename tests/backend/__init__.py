# SPDX-License-Identifier: GPL-3.0-or-later
"""The stand-in backend: three releases of the PAM backend, written afresh, broken as production was."""
