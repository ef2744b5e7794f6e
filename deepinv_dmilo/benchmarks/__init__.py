"""Side-by-side benchmarks of this package and deepinv's own methods, on the bundled prior."""
