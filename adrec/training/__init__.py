"""LightningModules and the trainer."""
