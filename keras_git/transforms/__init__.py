"""Nuisance transformations: batched, seeded on the host, the same on every backend."""
