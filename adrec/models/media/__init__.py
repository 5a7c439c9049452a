"""Pictures and sounds as vectors: pretrained encoders, and whatever a table says of pictures and sounds."""
