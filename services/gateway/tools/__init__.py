"""The tools: a class per family, an async method per RPC, and for what changes something a way to tell how it ended."""
