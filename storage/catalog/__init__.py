"""The DuckDB catalog: views over the artifacts, rebuilt from the manifests."""
