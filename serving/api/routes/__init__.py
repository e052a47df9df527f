"""The routes, a module a subject: parse, call one method, answer."""
