"""Optimisation: L-BFGS, Adam, conjugate gradients, gradient and proximal steps."""
