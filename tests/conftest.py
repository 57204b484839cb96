"""What every test runs under."""

import signal

from hypothesis import settings

# A shell's background commands ignore SIGINT and pass that on; tests press Ctrl-C on what they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: the machine may be busy. Derandomised: the same tests today and tomorrow, and nothing kept on disk.
settings.register_profile("sidestep", deadline=None, derandomize=True, database=None)
settings.load_profile("sidestep")
