"""How each sender proves itself: one verifier a scheme, on the exact bytes, and the doors that hold their secrets."""
