"""A run: its rounds one after another, its history, its end."""
