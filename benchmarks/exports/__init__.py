"""Parts of `benchmarks.files`: file sizes, loading, exports without gaprune, 2:4."""
