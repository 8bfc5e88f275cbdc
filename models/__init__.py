"""Networks and the array algorithms of refinement."""
