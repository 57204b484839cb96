"""What every test runs under."""

from hypothesis import settings

# No deadline: the machine may be busy. Derandomised: the same tests today and tomorrow, and nothing kept on disk.
settings.register_profile("sidestep", deadline=None, derandomize=True, database=None)
settings.load_profile("sidestep")
