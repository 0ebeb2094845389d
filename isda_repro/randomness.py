"""Named, independent streams of random numbers from one seed.

Every draw of a run is a function of (seed, stream name, indices such as epoch or step) and does not depend on earlier
draws. Therefore CE and ISDA with the same seed are paired (same initial weights, same batches), a run can resume in the
middle of an epoch without saved generator states, and adding a draw to one stream never shifts another.
"""

import hashlib

SEED_BITS = 63  # torch.Generator.manual_seed takes a signed 64-bit integer


def stream_seed(seed: int, name: str, *indices: int) -> int:
    """Return the seed of the stream ``name`` at ``indices``: a non-negative 63-bit integer, equal on every platform."""
    key = "/".join([str(seed), name, *map(str, indices)])
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> (64 - SEED_BITS)
