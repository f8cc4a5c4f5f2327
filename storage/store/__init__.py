"""The content-addressed store: keys, manifests, locks, commits, local or remote."""
