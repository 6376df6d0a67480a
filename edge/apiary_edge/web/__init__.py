"""The labelling page: a process of its own, for one owner with a token. `serve.serve` is the way in."""
