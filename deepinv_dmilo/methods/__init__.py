"""The reconstructors."""
