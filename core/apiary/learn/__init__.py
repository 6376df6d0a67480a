"""Pictures to tensors, sampling, training and evaluation on whichever runtime a machine has."""
