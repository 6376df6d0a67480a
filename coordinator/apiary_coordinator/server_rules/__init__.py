"""How the combined update of a round becomes the next model: one rule a file."""
