//! One kernel, from preparing to terminated.
