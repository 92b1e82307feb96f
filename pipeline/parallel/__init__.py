"""How the ranks of one training work together: the world and the strategies."""
