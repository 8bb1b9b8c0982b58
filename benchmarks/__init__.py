"""Benchmarks of awqpack: `python -m benchmarks SUITE`."""
