"""Guardrails: policy sets, approvals, target locks and leases; judges every action, signs grants, changes nothing."""
