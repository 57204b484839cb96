"""Where a trial runs: each in processes of its own that did nothing before."""
