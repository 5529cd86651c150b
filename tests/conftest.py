"""What all tests have in common."""

from hypothesis import HealthCheck, settings

# How fast the machine is just now says nothing about the code.
settings.register_profile("timeless", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("timeless")
