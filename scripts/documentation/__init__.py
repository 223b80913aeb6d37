"""The documentation site, which MkDocs builds from docs/ (mkdocs.yml): `make docs`."""
