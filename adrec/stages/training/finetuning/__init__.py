"""The steps of `adrec finetune`: what is read, the networks, what stands above them."""
