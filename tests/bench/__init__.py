# SPDX-License-Identifier: GPL-3.0-or-later
"""Benchmarks. Every file ``bench_*.py`` registers functions with ``harness.benchmark``; ``make bench`` runs them."""
