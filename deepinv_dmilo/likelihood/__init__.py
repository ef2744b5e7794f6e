"""p(y|x): the forward model, the noise, and the negative log-likelihoods that they make."""
