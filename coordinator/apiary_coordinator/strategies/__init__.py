"""How accepted updates become the next model: one strategy a file."""
