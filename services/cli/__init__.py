"""The `opsmesh` command: a gRPC client like any other."""
