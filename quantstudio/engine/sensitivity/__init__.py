"""What few bits cost each layer of a model: measured layer by layer, or predicted from gradients."""
