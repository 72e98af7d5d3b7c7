"""Policy sets: published, reviewed, stored; windows, caps and the ledger of effects."""
