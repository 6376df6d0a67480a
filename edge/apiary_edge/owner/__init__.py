"""The node's state for its owner at the machine."""
