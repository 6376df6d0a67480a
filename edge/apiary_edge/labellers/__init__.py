"""Ways to give pictures their labels: one a file."""
