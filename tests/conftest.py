"""Settings of every test: hypothesis has no deadline, because the machine may be busy."""

from hypothesis import settings

settings.register_profile("appliance", deadline=None)
settings.load_profile("appliance")
