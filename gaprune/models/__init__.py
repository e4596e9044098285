"""The network to prune: what it is, what it takes, what a pass costs."""
