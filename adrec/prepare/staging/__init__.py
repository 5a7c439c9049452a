"""Raw rows to typed, checked rows; what fails is set aside with its reason."""
