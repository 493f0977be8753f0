"""EasyEdit's own methods as methods of the benchmark."""
