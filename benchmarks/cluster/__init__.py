"""Benchmarks of workers and of faults."""
