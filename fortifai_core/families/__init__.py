"""Model classes other than language models, a folder each, behind one seam."""
