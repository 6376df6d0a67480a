"""Child processes of the node."""
