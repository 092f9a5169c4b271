"""Rows out, exactly once (`base` is the contract)."""
