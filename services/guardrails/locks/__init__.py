"""Target locks with their queue, and the claims of agents."""
