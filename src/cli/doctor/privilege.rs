//! What this process may do.

use rustix::process::{Resource, Rlimit, getrlimit};

use super::{Finding, Needs};
use crate::rootless;
use crate::sys::capability::{self, Lacking};

/// Files that an agent with many kernels has open: their sockets and the ports that are held for them.
const OPEN_FILES: u64 = 16_384;

/// Every check of this group.
pub(super) fn all(needs: Needs, refused: Option<String>) -> Vec<Finding> {
    let entered = rootless::current().is_some();
    vec![
        user(entered, refused),
        capabilities(capability::check()).needed(needs.network),
        raising_limits(capability::may_raise_limits()).needed(needs.containers),
        open_files(getrlimit(Resource::Nofile)),
    ]
}

/// `refused`: why an ordinary user could not become root of namespaces.
fn user(entered: bool, refused: Option<String>) -> Finding {
    let check = "user";
    match (refused, entered) {
        (Some(why), _) => Finding::failed(check, "an ordinary user", why),
        (None, true) => Finding::ok(check, "an ordinary user, root in namespaces of its own"),
        (None, false) if rustix::process::geteuid().is_root() => Finding::ok(check, "root"),
        (None, false) => Finding::info(check, "an ordinary user"),
    }
}

fn capabilities(checked: Result<(), Lacking>) -> Finding {
    let check = "capabilities";
    match checked {
        Ok(()) => Finding::ok(check, "all that making containers needs"),
        Err(lacking) => Finding::failed(
            check,
            format!("lacking {}", lacking.0.join(", ")),
            "run as root (sudo), or in a container with these capabilities",
        ),
    }
}

fn raising_limits(may: bool) -> Finding {
    let check = "raising-limits";
    if may {
        return Finding::ok(check, "limits of programs can be raised");
    }
    Finding::warning(
        check,
        "lacking CAP_SYS_RESOURCE: kernels get at most this process's hard limits",
        "give the agent CAP_SYS_RESOURCE, or raise the hard limits it is started with",
    )
}

fn open_files(limit: Rlimit) -> Finding {
    let check = "open-files";
    match limit.maximum {
        None => Finding::ok(check, "no limit"),
        Some(hard) if hard >= OPEN_FILES => Finding::ok(check, format!("up to {hard}")),
        Some(hard) => Finding::warning(
            check,
            format!("at most {hard} files: too few for many kernels"),
            format!(
                "LimitNOFILE={OPEN_FILES} in the agent's systemd unit, or ulimit -Hn {OPEN_FILES}"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    fn remedy(finding: &Finding) -> &str {
        finding.remedy.as_deref().expect("a remedy")
    }

    #[test]
    fn capabilities_that_are_lacking_are_named() {
        let found = capabilities(Err(Lacking(vec!["CAP_SYS_ADMIN".to_owned()])));
        assert_eq!(found.status, Status::Failed);
        assert!(found.detail.contains("CAP_SYS_ADMIN") && remedy(&found).contains("root"));
        assert_eq!(capabilities(Ok(())).status, Status::Ok);
    }

    #[test]
    fn what_keeps_an_ordinary_user_out_is_a_failure_with_its_remedy() {
        let found = user(false, Some("install the package uidmap".to_owned()));
        assert_eq!(found.status, Status::Failed);
        assert!(remedy(&found).contains("uidmap"));
        assert!(user(true, None).detail.contains("namespaces"));
    }

    #[test]
    fn limits_that_cannot_be_raised_are_a_warning() {
        let found = raising_limits(false);
        assert_eq!(found.status, Status::Warning);
        assert!(remedy(&found).contains("CAP_SYS_RESOURCE"));
    }

    #[test]
    fn few_open_files_are_a_warning_with_the_setting() {
        let limit = |maximum| Rlimit {
            current: Some(64),
            maximum,
        };
        let found = open_files(limit(Some(1024)));
        assert_eq!(found.status, Status::Warning);
        assert!(remedy(&found).contains("LimitNOFILE"));
        assert_eq!(open_files(limit(None)).status, Status::Ok);
        assert_eq!(open_files(limit(Some(1 << 20))).status, Status::Ok);
    }
}
