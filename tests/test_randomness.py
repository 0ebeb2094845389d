"""Seeds of the random streams: fixed for all platforms and versions, and distinct."""

from isda_repro.randomness import stream_seed


def test_streams_are_fixed_for_ever():
    assert stream_seed(0, "order", 1) == 2961819992523135983
    assert stream_seed(123, "network", 7, 2) == 7414596639944816841


def test_streams_differ_by_seed_name_and_index():
    seeds = {
        stream_seed(seed, name, index) for seed in range(20) for name in ("order", "network") for index in range(20)
    }
    assert len(seeds) == 800
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_indices_do_not_run_into_each_other():
    assert stream_seed(1, "a", 11) != stream_seed(1, "a", 1, 1)
    assert stream_seed(11, "a", 1) != stream_seed(1, "1/a", 1)
