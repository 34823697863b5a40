"""The demo: a slot autoencoder trained implicitly and, beside it, through its iterations."""
