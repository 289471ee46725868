//! Backend.AI node agent.
