"""Text and questions before any model: documents, splits, the schedule of generations, tokens, packing."""
