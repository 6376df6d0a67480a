"""Releases on the node: fetched, verified, tested on its own pictures, swapped in, and rolled back.

`store.current(state_dir)` is the slot to predict with, for any process.
"""
