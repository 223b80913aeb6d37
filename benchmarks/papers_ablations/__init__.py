"""What each part of a Flamingo is worth: many short trainings, each of which differs from one baseline in one thing.

The papers' comparisons (Flamingo, table 7; OpenFlamingo, tables 5 and 7) on flamingo-small's parts and pictures.
"""
