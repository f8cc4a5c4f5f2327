"""The experiment as typed values: what is read, trained, measured, and when it counts as failed."""
