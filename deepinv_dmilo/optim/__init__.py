"""What minimises: L-BFGS, Adam, gradient and proximal steps."""
