"""Pictures as vectors: a pretrained vision encoder, and whatever a table says of pictures."""
