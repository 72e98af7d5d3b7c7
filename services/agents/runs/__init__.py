"""Runs of agents: started, shown, cancelled, and carried on by whoever has their lease."""
