"""Watches and judges: plans trials, runs them in fresh arenas, accounts for every job, turns claims into findings."""
