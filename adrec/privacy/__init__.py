"""Differential privacy as plain values: randomness, mechanisms, accounting, the ledger. Knows no model and no config."""
