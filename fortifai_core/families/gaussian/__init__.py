"""The one-dimensional Gaussian: configuration, theory, many chains side by side, figures."""
