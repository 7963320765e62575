"""Speed of training, part by part."""
