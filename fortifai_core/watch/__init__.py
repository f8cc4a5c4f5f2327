"""Whether a model that is being trained collapses: probes beside a baseline, for Trainer, TRL and any loop."""
