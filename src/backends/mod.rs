//! The engines; `open` is the only place that knows them all.
