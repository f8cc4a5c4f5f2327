"""Fused linear + masked cross entropy, a leaf that any training code can import.

Kept free of `torch` and of `__version__` at import: transformers probes any package named `kernels`.
"""
