"""What can be trained: one model recipe a file. `base` says what a recipe is."""
