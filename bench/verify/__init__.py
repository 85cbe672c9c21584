"""`bench verify-gpu`: what only a GPU can confirm."""
