"""The stages of other model classes: their plan, their builders, what the UI shows, the report's data."""
