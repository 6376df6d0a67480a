"""What a node's training step minimises: one rule a file."""
