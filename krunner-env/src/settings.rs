//! What a runner is told from outside, put together once at the start: command line, `intrinsic-ports.json`, `environ.txt`.

use std::path::PathBuf;

use serde::Deserialize;

use crate::args::Options;
use crate::environ::Environ;
use crate::language::{self, Language};
use crate::log;
use crate::plan;

/// The ports of 19.03.
const REPLIN: u16 = 2000;
const REPLOUT: u16 = 2001;

/// `/home/config/intrinsic-ports.json` (26.x); other keys belong to services.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct IntrinsicPorts {
    replin: Option<u16>,
    replout: Option<u16>,
}

/// The settings, with everything looked up.
#[derive(Debug)]
pub(crate) struct Settings {
    /// The row of the language table.
    pub(crate) language: &'static Language,
    /// The interpreter or compiler.
    pub(crate) runtime: PathBuf,
    /// Where user code runs: the working folder, or `/` if it is not there.
    pub(crate) folder: PathBuf,
    /// What user code gets.
    pub(crate) environ: Environ,
    /// The port for ops.
    pub(crate) replin: u16,
    /// The port for records.
    pub(crate) replout: u16,
    /// Queries always end with exit code 0, as in 19.03 (`BACKENDAI_EXIT_CODES=19.03`); else with that of Python.
    pub(crate) queries_exit_with_zero: bool,
}

impl Settings {
    /// Reads the files and looks for the runtime.
    pub(crate) fn gather(options: &Options) -> Self {
        let language = language::find(&options.runtime_type).unwrap_or(&language::OTHER);
        let environ_txt = std::fs::read(options.config_dir.join("environ.txt")).unwrap_or_default();
        let environ = Environ::for_kernel(
            language,
            &options.work_dir,
            &String::from_utf8_lossy(&environ_txt),
        );
        let folder = if options.work_dir.is_dir() {
            options.work_dir.clone()
        } else {
            PathBuf::from("/")
        };
        let ports = intrinsic_ports(options);
        Self {
            language,
            runtime: plan::find_runtime(
                language,
                options.runtime_path.as_deref(),
                &environ,
                &folder,
            ),
            folder,
            queries_exit_with_zero: environ
                .get("BACKENDAI_EXIT_CODES")
                .is_some_and(|value| value == "19.03"),
            environ,
            replin: options.replin.or(ports.replin).unwrap_or(REPLIN),
            replout: options.replout.or(ports.replout).unwrap_or(REPLOUT),
        }
    }
}

fn intrinsic_ports(options: &Options) -> IntrinsicPorts {
    let path = options.config_dir.join("intrinsic-ports.json");
    let Ok(text) = std::fs::read(&path) else {
        return IntrinsicPorts::default();
    };
    serde_json::from_slice(&text).unwrap_or_else(|error| {
        log::note(&format!("{} is passed over: {error}", path.display()));
        IntrinsicPorts::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gathered(files: &[(&str, &str)], change: impl Fn(&mut Options)) -> Settings {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).expect("a file");
        }
        let mut options = Options {
            runtime_type: "python".into(),
            config_dir: folder.path().into(),
            ..Options::default()
        };
        change(&mut options);
        Settings::gather(&options)
    }

    #[test]
    fn ports_come_from_the_option_then_the_file_then_1903() {
        let file = [(
            "intrinsic-ports.json",
            r#"{"replin": 3000, "replout": 3001, "sshd": 2200}"#,
        )];
        let ports = |settings: Settings| (settings.replin, settings.replout);
        assert_eq!(ports(gathered(&[], |_| {})), (2000, 2001));
        assert_eq!(ports(gathered(&file, |_| {})), (3000, 3001));
        assert_eq!(
            ports(gathered(&file, |options| options.replin = Some(5))),
            (5, 3001)
        );
        assert_eq!(
            ports(gathered(&[("intrinsic-ports.json", "[]")], |_| {})),
            (2000, 2001)
        );
    }

    #[test]
    fn environ_txt_can_choose_the_exit_codes_of_1903() {
        assert!(!gathered(&[], |_| {}).queries_exit_with_zero);
        assert!(
            gathered(&[("environ.txt", "BACKENDAI_EXIT_CODES=19.03\n")], |_| {})
                .queries_exit_with_zero
        );
    }

    #[test]
    fn an_unknown_runtime_type_still_makes_a_kernel() {
        assert_eq!(
            gathered(&[], |options| options.runtime_type = "app".into()).language,
            &language::OTHER
        );
    }
}
