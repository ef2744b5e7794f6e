"""What knows no network family, file or command: a prior's contract, the problem of a layer, its solvers."""
