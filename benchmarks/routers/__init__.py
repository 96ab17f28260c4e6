"""Routers side by side on published outcome tables: `python -m benchmarks.routers`, behind `make bench-routers`."""
