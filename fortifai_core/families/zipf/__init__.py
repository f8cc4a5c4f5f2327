"""A vocabulary with Zipf frequencies, counted anew from its own samples."""
