"""What the shop adds to adrec: how its log is read, a baseline, and two parts of the model."""
