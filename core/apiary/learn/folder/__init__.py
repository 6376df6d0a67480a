"""What lies in a folder of pictures: which files count, which labels they have, what is left out and why."""
