"""The embedded corpus: an invented world that knows its own ground truth, and can be read back from text."""
