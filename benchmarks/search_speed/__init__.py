"""Speed of a search, compared with a forward pass, the original algorithm and other libraries."""
