"""Operators' requests, and the commands for nodes."""
