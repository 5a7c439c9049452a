"""Text encoders, how their vectors are pooled, read and trained."""
