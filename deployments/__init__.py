"""Serving the flows as Prefect deployments: on this machine, in containers, on a cluster."""
