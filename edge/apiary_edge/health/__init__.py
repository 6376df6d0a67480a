"""A machine's heat, power, memory, disk: `readings` understands, `reader` reads, `news` filters."""
