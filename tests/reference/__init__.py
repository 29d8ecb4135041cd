"""Recomputes the expected outputs of the reference fixtures with this project's functions."""
