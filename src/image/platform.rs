//! The image for one platform, out of an index of several.

use std::fmt;
use std::str::FromStr;

use oci_spec::image::Descriptor;

use super::architecture;
use super::error::{ImageError, Result};

/// What an image is for, `os/architecture[/variant]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Default for Platform {
    /// This machine.
    fn default() -> Self {
        Self {
            os: "linux".to_owned(),
            architecture: architecture().to_owned(),
            variant: None,
        }
    }
}

impl FromStr for Platform {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split('/').filter(|part| !part.is_empty());
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(os), Some(architecture), variant, None) => Ok(Self {
                os: os.to_owned(),
                architecture: architecture.to_owned(),
                variant: variant.map(str::to_owned),
            }),
            _ => Err(format!("{text:?} is not os/architecture")),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl Platform {
    fn fits(&self, entry: &Descriptor) -> bool {
        entry.platform().as_ref().is_some_and(|platform| {
            platform.os().to_string() == self.os
                && platform.architecture().to_string() == self.architecture
                && (self.variant.is_none() || self.variant == *platform.variant())
        })
    }
}

/// The entry for the platform; the only entry fits when it says none.
pub(crate) fn choose<'a>(
    what: &str,
    entries: &'a [Descriptor],
    platform: &Platform,
) -> Result<&'a Descriptor> {
    if let [only] = entries
        && only.platform().is_none()
    {
        return Ok(only);
    }
    let found = || {
        let platforms = entries.iter().filter_map(|entry| entry.platform().as_ref());
        let mut names: Vec<String> = platforms
            .map(|platform| format!("{}/{}", platform.os(), platform.architecture()))
            .collect();
        names.dedup();
        if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        }
    };
    let fitting = entries.iter().find(|entry| platform.fits(entry));
    fitting.ok_or_else(|| ImageError::NoPlatform {
        image: what.to_owned(),
        wanted: platform.to_string(),
        found: found(),
    })
}
