"""The pool of connections, the databases beside it, and what is tried again."""
