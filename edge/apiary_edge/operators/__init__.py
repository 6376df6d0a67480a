"""Commands of operators, carried out on the node."""
