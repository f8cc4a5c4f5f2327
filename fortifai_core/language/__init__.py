"""A language model trained, asked, and made to rewrite."""
