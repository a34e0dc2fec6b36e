"""The contract: methods, learners, sources, products, and the one training loop."""
