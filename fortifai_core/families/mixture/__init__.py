"""Gaussian mixtures of labelled points."""
