"""Recipe to files: trainer, base, finished model. TensorFlow is needed, so a child does it (`client`)."""
