"""Scripted load tests: a scenario in a file, an honest generator, thresholds."""
