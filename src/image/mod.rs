//! The node's image store for engines without one of their own: an OCI layout with unpacked layers.
