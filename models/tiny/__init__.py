"""How the shipped tiny weights are trained."""
