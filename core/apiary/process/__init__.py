"""This process and its children: allocator, death signal."""
