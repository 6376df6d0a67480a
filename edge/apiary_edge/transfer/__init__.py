"""Blobs down, updates up, and the outbox between."""
