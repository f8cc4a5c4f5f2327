"""A Prefect server with all deployments on this machine."""
