"""What each table and column is, guessed from names and values."""
