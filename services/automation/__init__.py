"""Playbooks: published as immutable versions, run step by step by a workflow engine, cancelled to an observed end."""
