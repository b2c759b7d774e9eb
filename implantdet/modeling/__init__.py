"""Networks: backbone, pre-training and heads."""
