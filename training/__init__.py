"""From a feed to a bundle: examples, label tables, losses, metrics, one training loop, the recipe of each system."""
