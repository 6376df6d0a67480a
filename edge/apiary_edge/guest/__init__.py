"""A node as a good guest of its machine: `rules` when to pause, `room` what a round takes, `stay` acts."""
