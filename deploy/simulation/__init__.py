"""A whole federation on one machine: the same ServerApp and ClientApp code on a grid of our own, or on Ray."""
