"""What is measured of text and of models: retention, drift, divergences, how a paragraph mutates."""
