//! The manager as this agent sees it: bytes to and from the agent's requests, replies and events, one folder for each generation.
