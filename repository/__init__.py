"""Releases of what is served: written whole, digested, published by one flip. No torch: servers import this."""
