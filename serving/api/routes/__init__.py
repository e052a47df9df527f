"""The routes, a module a resource: parse, call one method, answer."""
