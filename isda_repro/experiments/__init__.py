"""Specification of the paper's tables: which named runs each consists of, and the paper's values beside them."""
