"""Agents is the model boundary: the only process that will hold model keys; without a provider it says so."""
