"""The algorithms, as deepinv reconstructors."""
