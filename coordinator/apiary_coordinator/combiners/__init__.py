"""How the accepted updates of a round become one: one combiner a file."""
