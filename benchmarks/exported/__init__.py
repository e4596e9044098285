"""What files and patterns give, part by part; `benchmarks.files` runs them."""
