"""Retrieval of demonstrations whose images resemble the query (RICES)."""
