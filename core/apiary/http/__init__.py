"""The HTTP server behind every page and port of the project, bounded against slow and many senders."""
