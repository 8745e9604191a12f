"""OpenAI's API, with vLLM's additions: what clients send, what the engine does for it, and the answers' shapes."""
