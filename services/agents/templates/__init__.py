"""Templates of agents: what is published, what it pins, and what disables it."""
