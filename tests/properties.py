"""How property tests run: nothing depends on how busy the machine is, and in CI they draw the same examples each time.

tests/conftest.py loads it; a run without that file loads it by `-p tests.properties`.
"""

import os

from hypothesis import HealthCheck, settings

SLOWNESS = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("house", deadline=None, derandomize="CI" in os.environ, suppress_health_check=SLOWNESS)
settings.load_profile("house")
