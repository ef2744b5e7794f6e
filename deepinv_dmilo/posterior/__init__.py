"""p(x|y): prior and likelihood together, and what a layer of the network minimises."""
