"""What `adrec tune` is made of: the study and what is written at its end."""
