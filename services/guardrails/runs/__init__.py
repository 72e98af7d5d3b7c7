"""Runs of agents: what guardrails knows of each, what may be read for it, and what it may not do."""
