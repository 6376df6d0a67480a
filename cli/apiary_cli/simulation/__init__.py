"""A federation in one process on a virtual clock: `apiary simulate`."""
