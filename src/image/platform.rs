//! Platforms in OCI's words: `os/architecture`.

use std::fmt;
use std::str::FromStr;

/// An operating system and an architecture, as Go names them. Variants (`arm/v7`) are read and ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// `linux`, …
    pub os: String,
    /// `amd64`, `arm64`, …
    pub architecture: String,
}

impl Platform {
    /// This machine's.
    #[must_use]
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" => "ppc64le",
            "loongarch64" => "loong64",
            same => same,
        };
        Self {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

impl FromStr for Platform {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split('/');
        match (parts.next(), parts.next()) {
            (Some(os), Some(architecture)) if !os.is_empty() && !architecture.is_empty() => {
                Ok(Self {
                    os: os.to_owned(),
                    architecture: architecture.to_owned(),
                })
            }
            _ => Err(format!(
                "{text:?} is not a platform; write os/architecture, for example linux/amd64"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_platform_has_an_operating_system_and_an_architecture() {
        let platform: Platform = "linux/arm/v7".parse().expect("it is one");
        assert_eq!(platform.to_string(), "linux/arm");
        assert!("linux".parse::<Platform>().is_err());
        assert!("/amd64".parse::<Platform>().is_err());
    }
}
