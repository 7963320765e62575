"""Pure loss functions of tensors."""
