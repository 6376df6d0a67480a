"""How a tensor becomes bytes: one codec a file."""
