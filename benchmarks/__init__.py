"""Benchmarks of gaprune's public API, run as `python -m benchmarks.NAME`."""
