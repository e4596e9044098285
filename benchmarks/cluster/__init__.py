"""What the benchmarks of workers share: a Ray of their own, searches, tasks that misbehave."""
