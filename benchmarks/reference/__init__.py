"""Plain implementations that benchmarks and tests compare the package with."""
