"""Running Edge Impulse's Linux programs (`.eim`) on the node."""
