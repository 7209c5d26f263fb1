# SPDX-License-Identifier: GPL-3.0-or-later
"""What the WebSocket benchmarks compare with, and the crowd of clients that both serve."""
