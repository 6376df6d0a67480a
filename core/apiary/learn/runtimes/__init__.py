"""What runs a training step: one runtime a file. `base` says what each must offer."""
