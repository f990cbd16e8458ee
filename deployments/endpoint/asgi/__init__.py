"""ASGI application, uvicorn protocol and documentation pages."""
