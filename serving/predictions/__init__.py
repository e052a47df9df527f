"""The data plane: predict, embed, look back."""
