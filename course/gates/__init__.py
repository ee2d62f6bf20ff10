"""What is true of the whole tree: one file for each family of gates."""
