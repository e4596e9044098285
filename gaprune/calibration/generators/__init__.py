"""Generators of random inputs, one file per kind of input, and mixtures of them."""
