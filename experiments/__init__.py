"""What we want to know: one question a file, declarations only; `catalogue.py` has them all."""
