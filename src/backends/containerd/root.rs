//! A container's root file system before it is mounted: where a path in it leads. youki mounts a file over a link only
//! where the link's end is there; runc and crun follow it themselves, to the same place.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Component, Path, PathBuf};

use containerd_client::types::Mount as RootMount;

/// Links on one path, as many as Linux follows.
const LINKS: usize = 40;
/// Marks a folder that hides those below it.
const OPAQUE: &str = "trusted.overlay.opaque";

/// Folders that a root file system will be made of, topmost first.
#[derive(Debug, Default)]
pub(super) struct Layers(Vec<PathBuf>);

/// What a name stands for in a folder of all layers.
enum Found {
    /// Nothing, or what is no link.
    Plain,
    /// A link to this.
    Link(PathBuf),
    /// A folder, with its parts.
    Folder(Vec<PathBuf>),
}

impl Layers {
    /// Of the mounts of a snapshot; none of a file system that nobody sees into before it is mounted.
    pub(super) fn of(mounts: &[RootMount]) -> Self {
        let [mount] = mounts else {
            return Self::default();
        };
        let option = |name: &str| mount.options.iter().find_map(|it| it.strip_prefix(name));
        Self(match mount.r#type.as_str() {
            "bind" => vec![PathBuf::from(&mount.source)],
            "overlay" => {
                let upper = option("upperdir=").into_iter();
                let lowers = option("lowerdir=").unwrap_or_default().split(':');
                upper.chain(lowers).map(PathBuf::from).collect()
            }
            _ => Vec::new(),
        })
    }

    /// The path without links, seen from inside; what cannot be followed stays as it is.
    pub(super) fn resolve(&self, path: &Path) -> PathBuf {
        self.follow(path).unwrap_or_else(|| path.to_owned())
    }

    fn follow(&self, path: &Path) -> Option<PathBuf> {
        let mut left: VecDeque<OsString> = parts(path).collect();
        // Each folder on the way, from the root, with its name.
        let mut way: Vec<(OsString, Vec<PathBuf>)> = Vec::new();
        let mut links = 0;
        while let Some(name) = left.pop_front() {
            if name == ".." {
                way.pop();
                continue;
            }
            let here = way.last().map_or(&self.0, |(_, folders)| folders);
            match look(here, &name) {
                Found::Folder(folders) => way.push((name, folders)),
                Found::Plain => way.push((name, Vec::new())),
                Found::Link(target) => {
                    links += 1;
                    if links > LINKS {
                        return None;
                    }
                    if target.is_absolute() {
                        way.clear();
                    }
                    for part in parts(&target).rev() {
                        left.push_front(part);
                    }
                }
            }
        }
        let names = way.into_iter().map(|(name, _)| name);
        Some(Path::new("/").join(names.collect::<PathBuf>()))
    }
}

fn parts(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    })
}

/// Looks a name up as an overlay does. None of the folders is reached through a link, so nothing outside is seen.
fn look(layers: &[PathBuf], name: &OsString) -> Found {
    let mut folders = Vec::new();
    for layer in layers {
        let path = layer.join(name);
        let Ok(meta) = fs::symlink_metadata(&path) else {
            continue;
        };
        let kind = meta.file_type();
        if kind.is_dir() {
            let opaque = xattr::get(&path, OPAQUE).ok().flatten();
            folders.push(path);
            if opaque.is_some_and(|value| value == b"y") {
                break;
            }
        } else if !folders.is_empty() || (kind.is_char_device() && meta.rdev() == 0) {
            // What is below is hidden.
            break;
        } else if let (true, Ok(target)) = (kind.is_symlink(), fs::read_link(&path)) {
            return Found::Link(target);
        } else {
            return Found::Plain;
        }
    }
    match folders.is_empty() {
        true => Found::Plain,
        false => Found::Folder(folders),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn mount(kind: &str, source: &Path, options: Vec<String>) -> RootMount {
        RootMount {
            r#type: kind.to_owned(),
            source: source.display().to_string(),
            options,
            ..RootMount::default()
        }
    }

    /// Folders `upper`, `high` and `low` with these links, as an overlay.
    fn overlay(dir: &Path, links: &[(&str, &str)]) -> Layers {
        let at = |name: &str| dir.join(name);
        for (link, target) in links {
            fs::create_dir_all(at(link).parent().expect("a parent")).expect("a folder");
            symlink(target, at(link)).expect("a link");
        }
        for name in ["upper", "high", "low"] {
            fs::create_dir_all(at(name)).expect("a folder");
        }
        let options = vec![
            "index=off".to_owned(),
            format!("workdir={}", at("work").display()),
            format!("upperdir={}", at("upper").display()),
            format!("lowerdir={}:{}", at("high").display(), at("low").display()),
        ];
        Layers::of(&[mount("overlay", Path::new("overlay"), options)])
    }

    #[test]
    fn a_path_is_followed_through_links_of_all_layers_and_stays_inside() {
        let dir = tempfile::tempdir().expect("temp dir");
        let links = [
            ("low/etc/hostname", "/etc/passwd"),
            ("low/etc/hosts", "../../../run/hosts"),
            ("low/etc/resolv.conf", "near"),
            ("high/etc/near", "/a/b"),
            ("low/a", "/c"),
            ("low/etc/loop", "loop"),
        ];
        let layers = overlay(dir.path(), &links);
        for (path, end) in [
            ("/etc/hostname", "/etc/passwd"),
            ("/etc/hosts", "/run/hosts"),
            ("/etc/resolv.conf", "/c/b"),
            ("/etc/loop", "/etc/loop"),
            ("/etc/other", "/etc/other"),
            ("/not/there", "/not/there"),
        ] {
            assert_eq!(layers.resolve(Path::new(path)), Path::new(end), "{path}");
        }
    }

    #[test]
    fn what_a_layer_above_hides_is_not_followed() {
        let dir = tempfile::tempdir().expect("temp dir");
        let links = [
            ("low/etc/hostname", "/x"),
            ("low/etc/hosts", "/x"),
            ("low/etc/gone", "/x"),
            ("low/opt/link", "/x"),
            ("high/etc/hosts", "/y"),
        ];
        let layers = overlay(dir.path(), &links);
        fs::write(dir.path().join("high/etc/hostname"), "").expect("a file");
        fs::create_dir(dir.path().join("high/opt")).expect("a folder");
        let opaque = xattr::set(dir.path().join("high/opt"), OPAQUE, b"y");
        let gone = dir.path().join("high/etc/gone");
        let whiteout = rustix::fs::mknodat(
            rustix::fs::CWD,
            &gone,
            rustix::fs::FileType::CharacterDevice,
            rustix::fs::Mode::empty(),
            0,
        );
        for (path, end, made) in [
            ("/etc/hostname", "/etc/hostname", true),
            ("/etc/hosts", "/y", true),
            // Only root makes these.
            ("/etc/gone", "/etc/gone", whiteout.is_ok()),
            ("/opt/link", "/opt/link", opaque.is_ok()),
        ] {
            if made {
                assert_eq!(layers.resolve(Path::new(path)), Path::new(end), "{path}");
            }
        }
    }

    #[test]
    fn a_root_that_is_one_folder_is_seen_into_and_a_device_is_not() {
        let dir = tempfile::tempdir().expect("temp dir");
        symlink("b", dir.path().join("a")).expect("a link");
        let bound = Layers::of(&[mount("bind", dir.path(), vec!["rbind".to_owned()])]);
        assert_eq!(bound.resolve(Path::new("/a")), Path::new("/b"));
        let device = Layers::of(&[mount("ext4", dir.path(), Vec::new())]);
        assert_eq!(device.resolve(Path::new("/a")), Path::new("/a"));
    }
}
