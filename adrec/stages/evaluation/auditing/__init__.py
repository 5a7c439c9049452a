"""The parts of `adrec audit`."""
