"""The pictures of one node: SQLite says what they are, files hold them. `store.SampleStore` is the way in."""
