"""Releases: made from what was published, journaled, rolled out by `rollout`, managed by operators."""
