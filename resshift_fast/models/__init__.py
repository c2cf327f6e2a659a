"""The networks: modules that call `resshift_fast.ops` and nothing below them."""
