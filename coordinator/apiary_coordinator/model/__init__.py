"""The global model: built, evaluated, kept."""
