"""Content-addressed artifacts, their catalog, and the only door to the network (`storage.sources.hub`)."""
