"""The kill switch: engaged, released, reported, and the leases that carry it."""
