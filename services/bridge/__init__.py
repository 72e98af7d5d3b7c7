"""HTTP to gRPC: authenticates webhooks on their raw bytes and passes them on in batches."""
