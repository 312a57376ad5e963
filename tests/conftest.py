"""For all tests: the same examples in every run."""

from hypothesis import settings

# A failure is a change's and not a die's. Other examples each time: pytest --hypothesis-profile=default.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")
