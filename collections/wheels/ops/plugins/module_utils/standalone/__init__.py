# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The programs for a host without Ansible: the health monitor and the automated recovery, for cron, a timer, or a
person at night.
"""

from __future__ import annotations
