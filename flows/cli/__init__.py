"""The command line: `python -m flows.cli`, or `fortifai` when installed."""
