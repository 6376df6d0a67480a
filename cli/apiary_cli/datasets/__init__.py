"""Data sets: the catalogue, fetching, reading, sharing out."""
