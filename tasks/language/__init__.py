"""The stages of language models: their plan, their builders, what the UI shows, the report's data."""
