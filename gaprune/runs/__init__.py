"""A run from start to end: at one sparsity, at as many as a limit takes, resumed."""
