//! Files below the work folder.

mod output;

pub use self::output::{OutputFiles, changed, scan};
