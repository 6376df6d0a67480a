"""Releases: made from what was published, journaled, rolled out by `rollout`, asked about by operators."""
