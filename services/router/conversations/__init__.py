"""Conversations: what people say, what it means, and how a wish becomes an incident like any other."""
