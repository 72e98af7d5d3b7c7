"""The append-only, provable record: one sequencer, a hash chain from the first row, signed checkpoints outside."""
