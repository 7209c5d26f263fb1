# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The connection options of every module that talks to PostgreSQL."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  dsn:
    description:
      - How to connect, as C(postgresql://USER:PASSWORD@HOST:PORT/DATABASE) or in libpq's C(key=value) form.
      - A SQLAlchemy URL (C(postgresql+asyncpg://)) is understood, so that the backend's own C(DATABASE_URL) can be
        given.
      - What is not given here nor in the options below is taken from libpq's variables (E(PGHOST), E(PGUSER),
        E(PGPASSWORD)).
    type: str
  login_host:
    description: Host or socket directory. Wins over O(dsn).
    type: str
  login_port:
    description: TCP port. Wins over O(dsn).
    type: int
  login_user:
    description: Role to connect as. Wins over O(dsn).
    type: str
  login_password:
    description: Its password. Wins over O(dsn).
    type: str
  login_db:
    description: Database. Wins over O(dsn).
    type: str
  connect_timeout:
    description: Seconds to wait for the server to answer.
    type: int
    default: 10
requirements:
  - psycopg2 >= 2.9
"""
