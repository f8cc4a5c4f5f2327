"""From results to a page, a folder of figures and tables, and the terminal."""
