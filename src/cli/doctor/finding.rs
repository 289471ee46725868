//! What a check found.

use serde_json::{Value, json};

/// How grave a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// As it should be.
    Ok,
    /// Worth knowing; nothing that the chosen engine needs.
    Info,
    /// Kernels run, but not as well, or not all of them.
    Warning,
    /// Kernels do not run.
    Failed,
}

impl Status {
    /// Its name, also in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Failed => "failed",
        }
    }
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Name of the check; does not change.
    pub check: &'static str,
    /// How grave it is.
    pub status: Status,
    /// What there is.
    pub detail: String,
    /// What to do about it; absent when nothing need be done.
    pub remedy: Option<String>,
}

impl Finding {
    /// All is well.
    pub fn ok(check: &'static str, detail: impl Into<String>) -> Self {
        Self::new(check, Status::Ok, detail.into(), None)
    }

    /// Worth knowing.
    pub fn info(check: &'static str, detail: impl Into<String>) -> Self {
        Self::new(check, Status::Info, detail.into(), None)
    }

    /// Not as it should be, but kernels run.
    pub fn warning(
        check: &'static str,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(check, Status::Warning, detail.into(), Some(remedy.into()))
    }

    /// Kernels do not run.
    pub fn failed(
        check: &'static str,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self::new(check, Status::Failed, detail.into(), Some(remedy.into()))
    }

    fn new(check: &'static str, status: Status, detail: String, remedy: Option<String>) -> Self {
        Self {
            check,
            status,
            detail,
            remedy,
        }
    }

    /// What the chosen engine does not need is information, whatever was found.
    #[must_use]
    pub fn needed(mut self, needed: bool) -> Self {
        if !needed && self.status > Status::Info {
            self.status = Status::Info;
        }
        self
    }

    /// The finding as JSON.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({
            "check": self.check,
            "status": self.status.as_str(),
            "detail": self.detail,
            "remedy": self.remedy,
        })
    }
}
