"""Where text, questions and other real data come from: files, the hub, a mirror."""
