//! The runner of 19.03, out of the operator's own install of `backend.ai-agent`: nothing of it is shipped here.

use std::fs;
use std::path::{Path, PathBuf};

use super::{KrunnerError, MOUNT_POINT};

/// Where the environment of 19.03 looks for packages.
const SITE_PACKAGES: &str = "lib/python3.6/site-packages/ai/backend";
/// What an image that says nothing is built on (19.03 agent).
const DEFAULT_DISTRO: &str = "ubuntu16.04";
/// Files of a distribution begin so; their existence tells that the package supports it.
const PER_DISTRO: (&str, &str) = ("su-exec.", ".bin");

/// An installed package, the folder `ai/backend` of 19.03's agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    folder: PathBuf,
    /// Distributions that it has programs for, in the order of names.
    distros: Vec<String>,
    /// Those of them that it has a hook library for, on this machine.
    hooks: Vec<String>,
}

impl Package {
    /// Looks at `ai/backend`, or at the `site-packages` that it is in.
    ///
    /// # Errors
    /// [`KrunnerError::BadPackage`] when something of 19.03's is not there.
    pub fn open(path: &Path) -> Result<Self, KrunnerError> {
        let bad = |lacks: &str| KrunnerError::BadPackage {
            path: path.to_owned(),
            lacks: lacks.to_owned(),
        };
        let inner = path.join("ai/backend");
        let folder = if inner.is_dir() {
            inner
        } else {
            path.to_owned()
        };
        // Engines take absolute paths, and bind what a link leads to.
        let folder = fs::canonicalize(&folder).map_err(|_| bad("everything"))?;
        for name in [
            "runner/entrypoint.sh",
            "kernel/__main__.py",
            "helpers/__init__.py",
        ] {
            if !folder.join(name).is_file() {
                return Err(bad(name));
            }
        }
        let distros = distros(&folder.join("runner"));
        if distros.is_empty() {
            return Err(bad("runner/su-exec.*.bin"));
        }
        let hooks = distros.iter();
        let hooks = hooks.filter(|distro| folder.join(hook(distro)).is_file());
        Ok(Self {
            hooks: hooks.cloned().collect(),
            folder,
            distros,
        })
    }

    /// Files and folders to show read-only in a kernel whose image is built on `distro`, with their places there.
    #[must_use]
    pub fn binds(&self, distro: &str) -> Vec<(PathBuf, String)> {
        let distro = self.distro(distro);
        let mut all = vec![
            ("runner/entrypoint.sh".to_owned(), "bin/entrypoint.sh"),
            (format!("runner/su-exec.{distro}.bin"), "bin/su-exec"),
        ];
        let jail = format!("runner/jail.{distro}.bin");
        if self.folder.join(&jail).is_file() {
            all.push((jail, "bin/jail"));
        }
        if self.has_hook(distro) {
            all.push((hook(distro), "hook/libbaihook.so"));
        }
        let mut all: Vec<_> = all
            .into_iter()
            .map(|(from, to)| (self.folder.join(from), format!("{MOUNT_POINT}/{to}")))
            .collect();
        for name in ["kernel", "helpers"] {
            let to = format!("{MOUNT_POINT}/{SITE_PACKAGES}/{name}");
            all.push((self.folder.join(name), to));
        }
        all
    }

    /// The library that is loaded into every program of such a kernel.
    #[must_use]
    pub fn preload(&self, distro: &str) -> Option<String> {
        self.has_hook(self.distro(distro))
            .then(|| format!("{MOUNT_POINT}/hook/libbaihook.so"))
    }

    fn has_hook(&self, distro: &str) -> bool {
        self.hooks.iter().any(|known| known == distro)
    }

    /// The distribution whose programs fit: the image's own, or one with the same C library.
    fn distro(&self, wanted: &str) -> &str {
        let wanted = if wanted.is_empty() {
            DEFAULT_DISTRO
        } else {
            wanted
        };
        let musl = |name: &str| name.starts_with("alpine");
        let exact = self.distros.iter().find(|known| *known == wanted);
        let fitting = || {
            self.distros
                .iter()
                .find(|known| musl(known) == musl(wanted))
        };
        exact.or_else(fitting).unwrap_or(&self.distros[0])
    }
}

/// Makes the places where a package's files are shown, in an environment that lacks them.
pub(super) fn prepare(root: &Path) -> std::io::Result<()> {
    for folder in ["bin", "hook"] {
        fs::create_dir_all(root.join(folder))?;
    }
    for name in ["kernel", "helpers"] {
        fs::create_dir_all(root.join(SITE_PACKAGES).join(name))?;
    }
    for file in [
        "agent.sock",
        "bin/entrypoint.sh",
        "bin/su-exec",
        "bin/jail",
        "hook/libbaihook.so",
    ] {
        let path = root.join(file);
        if fs::symlink_metadata(&path).is_err() {
            fs::File::create_new(path)?;
        }
    }
    Ok(())
}

fn hook(distro: &str) -> String {
    format!("runner/libbaihook.{distro}.{}.so", std::env::consts::ARCH)
}

fn distros(folder: &Path) -> Vec<String> {
    let entries = folder.read_dir().into_iter().flatten().flatten();
    let mut found: Vec<String> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let name = name
                .strip_prefix(PER_DISTRO.0)?
                .strip_suffix(PER_DISTRO.1)?;
            Some(name.to_owned())
        })
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with files of these names.
    fn install(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for name in names {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().expect("below it")).expect("a folder");
            fs::write(path, "").expect("a file");
        }
        folder
    }

    const NEEDED: [&str; 3] = [
        "ai/backend/runner/entrypoint.sh",
        "ai/backend/kernel/__main__.py",
        "ai/backend/helpers/__init__.py",
    ];

    fn whole() -> tempfile::TempDir {
        let machine = std::env::consts::ARCH;
        let hook = format!("ai/backend/runner/libbaihook.ubuntu16.04.{machine}.so");
        let programs = [
            "ai/backend/runner/su-exec.alpine3.8.bin",
            "ai/backend/runner/su-exec.ubuntu16.04.bin",
            "ai/backend/runner/jail.ubuntu16.04.bin",
            &hook,
        ];
        install(&[&NEEDED[..], &programs].concat())
    }

    fn name(path: &Path) -> &str {
        path.file_name()
            .and_then(|name| name.to_str())
            .unwrap_or("")
    }

    #[test]
    fn programs_are_those_of_the_images_c_library() {
        let folder = whole();
        let package = Package::open(folder.path()).expect("whole");
        let same = Package::open(&folder.path().join("ai/backend")).expect("whole");
        assert_eq!(package, same);
        for (distro, found) in [
            ("ubuntu16.04", "su-exec.ubuntu16.04.bin"),
            ("", "su-exec.ubuntu16.04.bin"),
            ("centos7.6", "su-exec.ubuntu16.04.bin"),
            ("alpine3.8", "su-exec.alpine3.8.bin"),
            ("alpine3.19", "su-exec.alpine3.8.bin"),
        ] {
            let binds = package.binds(distro);
            let su_exec = binds
                .iter()
                .find(|(_, to)| to == "/opt/backend.ai/bin/su-exec");
            assert_eq!(name(&su_exec.expect("shown").0), found, "{distro}");
        }
    }

    #[test]
    fn only_what_is_there_is_shown_and_loaded() {
        let folder = whole();
        let package = Package::open(folder.path()).expect("whole");
        assert_eq!(package.binds("ubuntu16.04").len(), 6);
        assert_eq!(package.binds("alpine3.8").len(), 4, "no jail and no hook");
        let loaded = package.preload("ubuntu16.04");
        assert_eq!(
            loaded.as_deref(),
            Some("/opt/backend.ai/hook/libbaihook.so")
        );
        assert_eq!(package.preload("alpine3.8"), None);
    }

    #[test]
    fn a_folder_that_lacks_something_is_refused_by_what_it_lacks() {
        for missing in NEEDED {
            let names = NEEDED.iter().copied().filter(|name| *name != missing);
            let folder = install(&names.collect::<Vec<_>>());
            let error = Package::open(folder.path()).expect_err("not whole");
            let lacks = missing.trim_start_matches("ai/backend/");
            assert!(error.to_string().contains(lacks), "{error}");
        }
        let folder = install(&NEEDED);
        let error = Package::open(folder.path()).expect_err("no programs");
        assert!(error.to_string().contains("su-exec"), "{error}");
    }

    #[test]
    fn places_are_made_where_they_are_missing_and_files_stay() {
        let folder = install(&["bin/python3.6"]);
        fs::write(folder.path().join("agent.sock"), "kept").expect("a file");
        for _ in 0..2 {
            prepare(folder.path()).expect("made");
        }
        let kept = fs::read_to_string(folder.path().join("agent.sock"));
        assert_eq!(kept.expect("there"), "kept");
        assert!(folder.path().join(SITE_PACKAGES).join("kernel").is_dir());
        assert!(folder.path().join("bin/su-exec").is_file());
    }
}
