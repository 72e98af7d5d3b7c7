"""The gateway: one typed RPC per tool, the only holder of infrastructure credentials, the last check before an act."""
