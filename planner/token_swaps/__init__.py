"""Tokens of a layout's activations kept, swapped to the hosts or computed again, as MEMO divides them."""
