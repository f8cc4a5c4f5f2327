"""Rewriting documents block by block: what is rewritten, and two engines that give the same tokens."""
