"""Plain forms that the benchmarks and tests compare with."""
