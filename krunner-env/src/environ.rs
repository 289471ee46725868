//! The environment of user code: the container's, the defaults of the language, then `environ.txt`, which wins.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::language::Language;

const STANDARD_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Variables by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Environ(BTreeMap<OsString, OsString>);

impl Environ {
    /// What children of this runner get (19.03.3 runner, base: process environ, defaults, `environ.txt`).
    /// Unlike there, a PATH and a LANG that the image sets are kept.
    pub(crate) fn for_kernel(language: &Language, work_dir: &Path, environ_txt: &str) -> Self {
        let mut all = Self(std::env::vars_os().collect());
        all.set("HOME", work_dir);
        all.set(
            "SHELL",
            ["/bin/bash", "/bin/ash"]
                .into_iter()
                .find(|path| Path::new(path).exists())
                .unwrap_or("/bin/sh"),
        );
        for (name, value) in [("LANG", "C.UTF-8"), ("TERM", "xterm"), ("USER", "work")] {
            all.set_default(name, value);
        }
        for (name, value) in language.environment {
            all.set_default(name, value);
        }
        all.set_default("PATH", STANDARD_PATH);
        all.merge(environ_txt);
        all
    }

    /// Takes over the lines `NAME=value`; others are passed over.
    fn merge(&mut self, text: &str) {
        for (name, value) in text.lines().filter_map(|line| line.split_once('=')) {
            if !name.is_empty() {
                self.set(name, value);
            }
        }
    }

    /// Sets a variable.
    pub(crate) fn set(&mut self, name: &str, value: impl AsRef<OsStr>) {
        self.0.insert(name.into(), value.as_ref().to_owned());
    }

    fn set_default(&mut self, name: &str, value: &str) {
        self.0.entry(name.into()).or_insert_with(|| value.into());
    }

    /// The value of a variable.
    pub(crate) fn get(&self, name: &str) -> Option<&OsStr> {
        self.0.get(OsStr::new(name)).map(OsString::as_os_str)
    }

    /// The same with more for batch commands: where programs ask for input.
    pub(crate) fn for_batch(
        &self,
        python_dir: Option<&Path>,
        input_port: u16,
        input_socket: &Path,
    ) -> Self {
        let mut all = self.clone();
        all.set("_BACKEND_BATCH_MODE", "1");
        all.set("_BACKEND_INPUT_PORT", input_port.to_string());
        all.set("_BACKEND_INPUT_SOCKET", input_socket);
        if let Some(dir) = python_dir {
            let mut path = dir.as_os_str().to_owned();
            if let Some(own) = self.get("PYTHONPATH").filter(|own| !own.is_empty()) {
                path.push(":");
                path.push(own);
            }
            all.set("PYTHONPATH", path);
        }
        all
    }

    /// `NAME=value`, as execve wants them.
    pub(crate) fn pairs(&self) -> Vec<OsString> {
        let pair = |(name, value): (&OsString, &OsString)| {
            let mut pair = name.clone();
            pair.push("=");
            pair.push(value);
            pair
        };
        self.0.iter().map(pair).collect()
    }

    /// Finds a program: a name with a slash as it is (from `folder`), others on PATH.
    pub(crate) fn find(&self, program: &OsStr, folder: &Path) -> Option<PathBuf> {
        if program.as_bytes().contains(&b'/') {
            return Some(folder.join(program)).filter(|path| is_program(path));
        }
        let path = self.get("PATH").unwrap_or(OsStr::new(STANDARD_PATH));
        std::env::split_paths(path)
            .map(|dir| folder.join(dir).join(program))
            .find(|path| is_program(path))
    }
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::language;

    fn kernel(environ_txt: &str) -> Environ {
        let python = language::find("python").expect("python is in the table");
        Environ::for_kernel(python, Path::new("/home/work"), environ_txt)
    }

    #[test]
    fn environ_txt_wins_over_everything() {
        let all = kernel("HOME=/elsewhere\nA=b=c\n\nno equals sign\n=x\nEMPTY=\n");
        assert_eq!(all.get("HOME"), Some(OsStr::new("/elsewhere")));
        assert_eq!(all.get("A"), Some(OsStr::new("b=c")));
        assert_eq!(all.get("EMPTY"), Some(OsStr::new("")));
        assert!(
            !all.pairs()
                .iter()
                .any(|pair| pair.as_bytes().starts_with(b"no equals"))
        );
    }

    #[test]
    fn the_image_s_own_path_is_kept() {
        assert_eq!(kernel("").get("PATH"), std::env::var_os("PATH").as_deref());
        assert_eq!(kernel("").get("HOME"), Some(OsStr::new("/home/work")));
    }

    #[test]
    fn batch_commands_see_our_python_folder_before_the_user_s() {
        let batch = kernel("PYTHONPATH=/mine").for_batch(
            Some(Path::new("/ours")),
            65000,
            Path::new("/tmp/s"),
        );
        assert_eq!(batch.get("PYTHONPATH"), Some(OsStr::new("/ours:/mine")));
        assert_eq!(batch.get("_BACKEND_BATCH_MODE"), Some(OsStr::new("1")));
        assert_eq!(kernel("").get("_BACKEND_BATCH_MODE"), None);
    }

    #[test]
    fn programs_are_found_by_name_and_by_path() {
        let all = kernel("PATH=/nowhere:/bin");
        assert_eq!(
            all.find(OsStr::new("sh"), Path::new("/")),
            Some("/bin/sh".into())
        );
        assert_eq!(
            all.find(OsStr::new("bin/sh"), Path::new("/")),
            Some("/bin/sh".into())
        );
        assert_eq!(
            all.find(OsStr::new("no-such-program"), Path::new("/")),
            None
        );
        assert_eq!(all.find(OsStr::new("/etc/passwd"), Path::new("/")), None);
    }
}
