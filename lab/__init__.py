"""Watches and judges: plans trials, runs them in fresh arenas, accounts for every job, and turns claims into findings."""
