"""The science of recursive training, pure: no orchestration, no database, no network."""
