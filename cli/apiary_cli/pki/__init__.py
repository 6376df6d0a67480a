"""`apiary pki`: the fleet's private authority, and a device's part of it."""
