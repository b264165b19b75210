"""Ways of training the early exits: what they cost the full depth, and how far they are from models of their own."""
