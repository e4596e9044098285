"""Rows of the benchmark on real networks: what is asked, how a row is made, where rows are kept."""
