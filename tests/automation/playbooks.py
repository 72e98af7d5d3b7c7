"""Playbooks that only tests need."""

from typing import Any

import yaml
from google.protobuf import json_format

from opsmesh.config.v1 import playbooks_pb2


def playbook(text: str) -> playbooks_pb2.Playbook:
    """Return a playbook from YAML."""
    content: Any = yaml.safe_load(text)
    return json_format.ParseDict(content, playbooks_pb2.Playbook())


# Restarts, undoes that by another restart when the check after it fails, and says so.
UNDONE = playbook("""
playbook_id: undone
title: A restart that is undone
steps:
  - step_id: restart
    tool: RestartWorkload
    arguments: {target_id: {from: "incident.targets[0]"}}
    compensation:
      tool: RestartWorkload
      arguments: {target_id: {from: "incident.targets[0]"}, reason: {literal: undo}}
  - step_id: verify
    tool: CheckHealth
    arguments: {target_id: {from: "incident.targets[0]"}}
    attempts: {max_attempts: 2, delay_duration: 0.05s}
    expect: [{path: healthy, equals: true}]
failure_step:
  step_id: tell
  tool: SendNotice
  arguments: {channel: {literal: ops}, kind: {literal: KIND_FAILED}, title: {from: incident.title}}
proof_step_id: verify
""")

# One effect that may be tried three times.
TRIED = playbook("""
playbook_id: tried
title: A restart with three tries
steps:
  - step_id: restart
    tool: RestartWorkload
    arguments: {target_id: {from: "incident.targets[0]"}}
    attempts: {max_attempts: 3, delay_duration: 0.05s}
""")

# The second target of the incident is not in the inventory.
ASTRAY = playbook("""
playbook_id: astray
title: A restart of what nobody knows
steps:
  - step_id: restart
    tool: RestartWorkload
    arguments: {target_id: {from: "incident.targets[1]"}}
""")

# Waits between two effects, longer than any test.
SLOW = playbook("""
playbook_id: slow
title: A long wait between two tries
steps:
  - step_id: restart
    tool: RestartWorkload
    arguments: {target_id: {from: "incident.targets[0]"}}
  - step_id: verify
    tool: CheckHealth
    arguments: {target_id: {from: "incident.targets[0]"}}
    attempts: {max_attempts: 2, delay_duration: 300s}
    expect: [{path: healthy, equals: true}]
""")

# Acts on two targets, one after the other.
CROSSING = playbook("""
playbook_id: crossing
title: Two restarts, one after the other
steps:
  - step_id: first
    tool: RestartWorkload
    arguments: {target_id: {from: "incident.targets[0]"}}
  - step_id: second
    tool: RestartWorkload
    arguments: {target_id: {from: "incident.targets[1]"}}
""")
ALL = (UNDONE, TRIED, ASTRAY, SLOW, CROSSING)
