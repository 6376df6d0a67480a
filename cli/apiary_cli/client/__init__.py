"""A program that talks to a running federation, or reads a finished run."""
