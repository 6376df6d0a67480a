"""This process and its children: allocator, child processes."""
