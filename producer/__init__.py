"""The only thing that creates load."""
