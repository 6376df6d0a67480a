"""What a node publishes about itself."""
