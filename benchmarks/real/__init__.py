"""The benchmark on real networks: settings, methods, rows and tables."""
