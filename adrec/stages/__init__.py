"""One file a command: run(config, terminal) -> a small result object."""
