# SPDX-License-Identifier: MIT
"""What ``app/core/websocket_manager.py`` does not do when it is copied into a backend by itself.

``guard.WebSocketGuard`` is the way in: ``wiring`` puts it around the application, and it registers ``session.Sessions``
with the manager. Imports run in one direction: ``guard`` imports ``poll`` and ``addresses``, ``poll`` imports
``session``, and all of them import the manager, which imports none of them.
"""
