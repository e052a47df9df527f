"""The engines that run encoders, one module each. Importing the package imports none of them."""
