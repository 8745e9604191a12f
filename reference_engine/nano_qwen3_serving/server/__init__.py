"""The engine's front door: an HTTP server that speaks OpenAI's API.

Importing this package imports no web framework. What needs FastAPI is in modules of their own, and they say so
when it is missing: pip install 'nano-qwen3-serving[server]'.
"""
