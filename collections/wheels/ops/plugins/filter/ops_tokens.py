# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The ops tokens in a file."""

from __future__ import annotations

DOCUMENTATION = r"""
name: ops_tokens
short_description: Read ops tokens from the text of their file
version_added: 1.1.0
description:
  - Reads the text as the backend does. Lines that begin with C(#) are comments, and a shorter text than sixteen
    characters is no token.
options:
  _input:
    description: The text of the file.
    type: str
    required: true
author:
  - The wheels.ops maintainers (@wheels-ops)
"""

EXAMPLES = r"""
- name: Require an ops token
  ansible.builtin.assert:
    that: token.content | b64decode | wheels.ops.ops_tokens | length > 0
"""

RETURN = r"""
_value:
  description: The tokens, in order.
  type: list
"""

import typing as t

from ansible_collections.wheels.ops.plugins.module_utils.state.ops_token import parse


def ops_tokens(text: str) -> t.List[str]:
    return parse(text)[0]


class FilterModule:
    """See DOCUMENTATION."""

    def filters(self) -> t.Dict[str, t.Callable[..., t.Any]]:
        return {"ops_tokens": ops_tokens}
