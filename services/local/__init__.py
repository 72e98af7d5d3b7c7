"""One machine: embedded stores, certificates, supervision, and the demo's workload."""
