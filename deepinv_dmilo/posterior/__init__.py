"""p(x|y): the prior and the likelihood together, and the optimisation problem of one layer."""
