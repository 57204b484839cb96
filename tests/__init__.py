"""Tests are sentences: those here need no broker, no network and no patience; the real stack's are marked `real`."""
