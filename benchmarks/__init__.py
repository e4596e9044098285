"""Benchmarks over the public API; each is a table of cases, run as `python -m benchmarks.NAME`."""
