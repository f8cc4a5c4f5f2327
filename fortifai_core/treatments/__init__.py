"""Treatments of the text that a generation is trained on: documents in, documents out, and what became of each."""
