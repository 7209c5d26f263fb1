# SPDX-License-Identifier: MIT
"""What wheels.ops adds to the backend beside the files it replaces. ``wiring.install(app)`` puts it all to work."""
