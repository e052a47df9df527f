"""The engines that run encoders, one module each, imported when it is asked for."""
