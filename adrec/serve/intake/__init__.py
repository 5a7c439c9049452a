"""What is asked of the server: its messages, and each held against the bundle before it joins a pass of the model."""
