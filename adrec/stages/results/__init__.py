"""What commands report beside their tables."""
