"""Everything between a socket and a servicer: settings, TLS, the chain, errors, policy, clients and telemetry.

This package knows the generated code and no service.
"""
