"""What features are good for: fine-tuning, probes on frozen features, and honest error bars."""
