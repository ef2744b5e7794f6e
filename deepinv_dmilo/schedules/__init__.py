"""What the outer steps do: the plan of a call, its first image, its stages, how it finishes."""
