"""HTTP: routes, wire shapes, errors as JSON. One file a resource; no rules of the product."""
