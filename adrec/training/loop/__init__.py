"""How any training runs: one `fit` with exact resume, batches, optimiser, schedule, processes and machines."""
