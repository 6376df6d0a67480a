"""One round: the state table and the shell that performs it."""
