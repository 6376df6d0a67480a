"""The edge node: images, training, outbox."""
