"""The Penn Treebank tokenizer that captioning metrics are defined by."""
