"""Beyond one static 8-bit recipe: granularity, bits per layer, and fine-tuning."""
