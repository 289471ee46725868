//! The images of a store by their names: which one is meant, and what goes when one is removed.

use super::error::{ImageError, Result};
use super::reference::ImageRef;
use crate::runtime::ImageInfo;

/// One image with all its names, and what else its store knows of it.
#[derive(Debug)]
pub(crate) struct Entry<T> {
    /// Digest of its manifest for this machine.
    pub(crate) manifest: String,
    pub(crate) info: ImageInfo,
    pub(crate) image: T,
}

/// All images, each once.
#[derive(Debug)]
pub(crate) struct Catalog<T>(Vec<Entry<T>>);

impl<T> Default for Catalog<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Catalog<T> {
    /// An image that is known already, to give it another name.
    pub(crate) fn known(&mut self, manifest: &str) -> Option<&mut Entry<T>> {
        self.0.iter_mut().find(|entry| entry.manifest == manifest)
    }

    /// Adds an image that is not known.
    pub(crate) fn add(&mut self, manifest: String, info: ImageInfo, image: T) -> &mut Entry<T> {
        self.0.push(Entry {
            manifest,
            info,
            image,
        });
        self.0.last_mut().expect("pushed above")
    }

    /// All, in the order of names.
    pub(crate) fn sorted(mut self) -> Vec<Entry<T>> {
        for entry in &mut self.0 {
            entry.info.names.sort();
        }
        self.0
            .sort_by(|a, b| (&a.info.names, &a.info.id).cmp(&(&b.info.names, &b.info.id)));
        self.0
    }

    /// One image, by name, by config digest, or by `name@digest`.
    pub(crate) fn find(self, image: &str) -> Result<Entry<T>> {
        let mut all = self.sorted();
        let index = position(&all, image)?;
        Ok(all.swap_remove(index))
    }
}

impl<T> Entry<T> {
    /// The names that go when `image` is removed, and whether the image goes with them.
    pub(crate) fn removal(&self, image: &str) -> (Vec<String>, bool) {
        let names = &self.info.names;
        match named(names, image) {
            Some(name) => (vec![name], names.len() < 2),
            None => (names.clone(), true),
        }
    }
}

fn position<T>(all: &[Entry<T>], image: &str) -> Result<usize> {
    let missing = || ImageError::Missing(image.to_owned());
    if image.starts_with("sha256:") {
        let found = all.iter().position(|entry| entry.info.id == image);
        return found.ok_or_else(missing);
    }
    let wanted = ImageRef::parse(image)?;
    let named = |entry: &Entry<T>, matches: &dyn Fn(&str) -> bool| {
        let digest = wanted.digest().is_none_or(|digest| {
            entry.manifest == digest || entry.info.repo_digest.as_deref() == Some(digest)
        });
        digest && entry.info.names.iter().any(|name| matches(name))
    };
    let exact = wanted.tagged().unwrap_or_else(|| wanted.to_string());
    let same = |name: &str| {
        ImageRef::parse(name).is_ok_and(|name| match wanted.tag() {
            Some(_) => name.same_image(&wanted),
            None => name.same_repository(&wanted),
        })
    };
    all.iter()
        .position(|entry| named(entry, &|name| name == exact))
        .or_else(|| all.iter().position(|entry| named(entry, &same)))
        .ok_or_else(missing)
}

/// The name of the image that was meant, if it was a name.
fn named(names: &[String], image: &str) -> Option<String> {
    let wanted = ImageRef::parse(image)
        .ok()
        .filter(|_| !image.starts_with("sha256:"))?;
    let exact = wanted.tagged()?;
    let same = |name: &&String| ImageRef::parse(name).is_ok_and(|name| name.same_image(&wanted));
    names
        .iter()
        .find(|name| **name == exact)
        .or_else(|| names.iter().find(same))
        .cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> Catalog<()> {
        let digest = |digit: &str| format!("sha256:{}", digit.repeat(64));
        let mut catalog = Catalog::default();
        for (digit, names) in [("b", vec!["r.io/b:1"]), ("a", vec!["r.io/a:2", "r.io/a:1"])] {
            let names = names.into_iter().map(str::to_owned).collect();
            let id = digest(digit);
            let info = ImageInfo {
                id,
                names,
                ..ImageInfo::default()
            };
            catalog.add(digest(&digit.replace('b', "0")), info, ());
        }
        catalog
    }

    #[test]
    fn images_come_in_the_order_of_names() {
        let names = |entry: Entry<()>| entry.info.names;
        let all: Vec<_> = two().sorted().into_iter().map(names).collect();
        assert_eq!(all, [vec!["r.io/a:1", "r.io/a:2"], vec!["r.io/b:1"]]);
    }

    #[test]
    fn an_image_is_found_by_any_of_its_names_by_id_and_by_digest() {
        let id = format!("sha256:{}", "b".repeat(64));
        let by_digest = format!("r.io/b@sha256:{}", "0".repeat(64));
        for asked in ["r.io/b:1", &id, &by_digest] {
            assert_eq!(two().find(asked).expect(asked).info.id, id);
        }
        for asked in ["r.io/b:2", &format!("r.io/a@sha256:{}", "0".repeat(64))] {
            let missing = two().find(asked);
            assert!(matches!(missing, Err(ImageError::Missing(_))), "{asked}");
        }
    }

    #[test]
    fn an_image_goes_with_its_last_name_or_by_its_id() {
        let entry = two().find("r.io/a:1").expect("it is there");
        let one = vec!["r.io/a:1".to_owned()];
        assert_eq!(entry.removal("r.io/a:1"), (one, false));
        let id = entry.info.id.clone();
        assert_eq!(entry.removal(&id), (entry.info.names.clone(), true));
        let entry = two().find("r.io/b:1").expect("it is there");
        assert!(entry.removal("r.io/b:1").1);
    }
}
