"""Heat, power, memory, disk: `readings` understands, `reader` and `memory` read, `news` filters."""
