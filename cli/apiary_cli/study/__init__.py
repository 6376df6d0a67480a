"""A grid of simulated runs, its table and its page: `apiary study`."""
