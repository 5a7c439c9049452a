"""Training on rows that stay with their owners: clients, sums, rounds. A simulation in one process."""
