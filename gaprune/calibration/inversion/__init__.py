"""Inputs optimised against the network: BatchNorm inversion, class impressions, token search."""
