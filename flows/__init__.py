"""Flows: which stage follows which. Prose over `tasks`; presets and the command line live here too."""
