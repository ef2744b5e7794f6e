"""What wraps a network as a prior, one file a family, and the bundled networks."""
