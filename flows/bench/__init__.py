"""Benchmarks of whole engines, on models of an experiment too."""
