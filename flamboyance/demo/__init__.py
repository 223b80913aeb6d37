"""The demonstration: a model answers on held-out images, and a page shows how.

`examples` draws pictures and writes them to files; `asking` puts them to the model as any user would; `results` counts;
`plot` and `page` show.
"""
