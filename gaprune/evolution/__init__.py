"""The search: genes, operators, breeding, survival."""
