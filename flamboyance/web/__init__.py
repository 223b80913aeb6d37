"""The page of `flamboyance web`: answers.py (what its controls do), drawing.py (its figures), page.py (its layout)."""
