"""Local training: the session's state table, the child process, the update."""
