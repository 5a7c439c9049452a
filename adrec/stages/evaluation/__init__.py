"""What `adrec evaluate` does between a Parquet file and a report, a file an idea."""
