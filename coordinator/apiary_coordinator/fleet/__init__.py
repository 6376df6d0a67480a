"""The nodes that the coordinator knows, and which of them a round draws."""
