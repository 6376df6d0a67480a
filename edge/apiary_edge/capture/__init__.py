"""Camera frames into the sample store."""
