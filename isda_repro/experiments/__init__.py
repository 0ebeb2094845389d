"""Which runs a table consists of: a specification becomes named runs, with the paper's values beside them."""
