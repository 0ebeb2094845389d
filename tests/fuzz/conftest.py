"""Settings of the property-based tests.

Each test tries a few examples in the slow suite; ``FUZZ_EXAMPLES=2000 python -m pytest tests/fuzz``
tries that many.
"""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "isda_repro",
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "50")),
    deadline=None,  # the machine may be busy; the tests bound time themselves where it matters
    derandomize="FUZZ_EXAMPLES" not in os.environ,  # the suite tries the same examples each time
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("isda_repro")
