"""What a prepared folder holds, written."""
