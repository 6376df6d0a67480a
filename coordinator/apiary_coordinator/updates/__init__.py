"""Updates on their way from the bus to the exact sum, and the model on its way out."""
