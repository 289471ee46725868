//! The default system-call filter.
use serde_json::Value;

/// The default profile for a container with these capabilities.
#[must_use]
pub fn default_profile(_capabilities: &[String]) -> Value {
    Value::Null
}
