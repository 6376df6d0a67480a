"""When runs begin: the queue, times of day, what is kept of old ones."""
