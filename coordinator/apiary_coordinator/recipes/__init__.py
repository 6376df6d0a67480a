"""What can be trained: one model recipe a file. `base` defines what a recipe is."""
