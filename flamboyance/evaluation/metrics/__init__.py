"""Metrics: CIDEr, VQA accuracy, ROC AUC, accuracy; numbers as the official tools give them, without Java."""
