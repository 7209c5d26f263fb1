#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: tts_engine
short_description: Install text-to-speech engines and verify their output
version_added: 1.0.0
description:
  - Finds the engines of the backend's speech chain, installs those that are missing or too old, and lets each of them
    speak.
  - Audio is looked into frame by frame. An engine that made none is never called working.
  - Names the engine that would speak now, and why the better ones would not.
  - Coqui is looked for, and installed if asked for, but verified only by the backend, which has the model.
  - The backend's interpreter never runs as root unless it is root's; it runs as O(backend_user), with a home and a
    temporary directory of its own.
    An interpreter, or an environment, that a third user may write is refused.
options:
  engines:
    description: What must be there. V(espeak) is espeak-ng, or espeak where that is installed already.
    type: list
    elements: str
    choices: [edge, coqui, espeak, pyttsx3]
    default: [edge, espeak]
  primary:
    description: Where the backend's chain begins, its C(TTS_PRIMARY_ENGINE). V(fallback) for the host's own engines
      only.
    type: str
    choices: [edge, coqui, fallback]
    default: edge
  backend_python:
    description: The Python in the backend's virtual environment, where V(edge), V(coqui) and V(pyttsx3) live. Without
      it they are not looked at.
    type: path
    default: ""
  backend_user:
    description: The user, by name or number, as whom O(backend_python) runs. If empty, the owner of its environment,
      who installs packages in any case.
    type: str
    default: ""
  verify_in_check_mode:
    description: Run O(backend_python) and the engines in its environment in check mode as well.
    type: bool
    default: false
  proxy:
    description: The proxy through which Edge is reached, an http or https URL.
    type: str
    default: ""
  voice:
    description: The voice with which Edge is verified.
    type: str
    default: en-US-AriaNeural
  text:
    description: What is spoken to verify an engine, at most 500 characters.
    type: str
    default: The speech engines work.
  install:
    description: Whether to install what is missing. V(false) fails instead.
    type: bool
    default: true
  allow_text_only:
    description: Whether a host on which nothing makes audio is a success.
    type: bool
    default: false
  timeout:
    description: Seconds for one engine to speak, 1 to 120.
    type: float
    default: 10
  install_timeout:
    description: Seconds for one installation, 1 to 7200.
    type: float
    default: 600
requirements:
  - root for espeak-ng by C(apt-get)
  - the right to write the backend's virtual environment, with pip or uv, for the other engines
author:
  - The wheels.ops maintainers (@wheels-ops)
extends_documentation_fragment:
  - wheels.ops.attributes
attributes:
  check_mode:
    support: full
    details:
      - An engine of the host itself is verified in check mode as well, which changes nothing.
      - Nothing in the environment of O(backend_python) is executed in check mode unless O(verify_in_check_mode);
        RV(left_out) names what was not
        verified. What is installed there is read from its files.
  diff_mode:
    support: full
"""

EXAMPLES = r"""
- name: A host that can always speak
  wheels.ops.tts_engine:
    engines: [edge, espeak]
    backend_python: /production/venv/bin/python

- name: Only the host's own engine, as after the incident (TTS_PRIMARY_ENGINE=fallback)
  wheels.ops.tts_engine:
    engines: [espeak]
    primary: fallback
"""

RETURN = r"""
engine:
  description: The engine that would speak now; V(text_only) for none.
  returned: success
  type: str
  sample: espeak
reasons:
  description: Why each better engine of the chain would not speak.
  returned: success
  type: dict
  sample: {coqui: the package coqui-tts is not installed}
chain:
  description: The chain, best engine first.
  returned: success
  type: list
  elements: str
left_out:
  description: The engines that were not verified, as check mode executes nothing of the backend.
  returned: success
  type: list
  elements: str
before:
  description: C(engines) by name, each with C(present), C(version), C(program), C(speaks), C(why), C(audio).
  returned: success
  type: dict
after:
  description: The same afterwards, with the result of the verification, and C(engine). In check mode what is to be
    expected.
  returned: success
  type: dict
actions:
  description: What was installed, and what spoke.
  returned: success
  type: list
  elements: dict
  contains:
    action:
      description: V(install) or V(speak).
      type: str
    target:
      description: The package or the engine.
      type: str
    changed:
      description: Whether it changed the host.
      type: bool
    speaks:
      description: Whether the audio decodes and holds sound.
      type: bool
    why:
      description: Why it was installed, or why it does not speak.
      type: str
    format:
      description: Of the audio, for example V(wav) or V(mp3).
      type: str
    bytes:
      description: The size of the audio.
      type: int
    duration_ms:
      description: How long the audio plays.
      type: int
    first_to_last_ms:
      description: From the first byte of the audio to the last.
      type: float
    sample_rate:
      description: Of the audio, in hertz.
      type: int
    silent:
      description: Whether it holds no sound.
      type: bool
diff:
  description: The engines and their versions before and after.
  returned: success
  type: list
  elements: dict
msg:
  description: One sentence for people.
  returned: always
  type: str
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.wheels.ops.plugins.module_utils._ansible import run
from ansible_collections.wheels.ops.plugins.module_utils.remedies import tts_engine


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "engines": {
                "type": "list",
                "elements": "str",
                "choices": ["edge", "coqui", "espeak", "pyttsx3"],
                "default": ["edge", "espeak"],
            },
            "primary": {"type": "str", "choices": ["edge", "coqui", "fallback"], "default": "edge"},
            "backend_python": {"type": "path", "default": ""},
            "backend_user": {"type": "str", "default": ""},
            "verify_in_check_mode": {"type": "bool", "default": False},
            "proxy": {"type": "str", "default": "", "no_log": True},
            "voice": {"type": "str", "default": "en-US-AriaNeural"},
            "text": {"type": "str", "default": "The speech engines work."},
            "install": {"type": "bool", "default": True},
            "allow_text_only": {"type": "bool", "default": False},
            "timeout": {"type": "float", "default": 10},
            "install_timeout": {"type": "float", "default": 600},
        },
        supports_check_mode=True,
    )
    options: t.Dict[str, t.Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in module.params.items()
    }
    run(module, lambda: tts_engine.run(tts_engine.Options(**options), check_mode=module.check_mode))


if __name__ == "__main__":
    main()
