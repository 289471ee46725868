//! Which layers stand under a mount of any process: whoever removes an image by hand knows no engine to ask.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;

use super::reference::digest_hex;

/// Those of the layers that some mount namespace has mounted; processes that this one may not look at are passed over.
pub(crate) fn of(diff_ids: &HashSet<String>) -> HashSet<String> {
    let mut found = HashSet::new();
    let mut seen = HashSet::new();
    let Ok(processes) = fs::read_dir("/proc") else {
        return found;
    };
    for process in processes.flatten() {
        let path = process.path();
        let Ok(namespace) = fs::metadata(path.join("ns/mnt")) else {
            continue;
        };
        if !seen.insert((namespace.dev(), namespace.ino())) {
            continue;
        }
        // A process may end meanwhile: another one of its namespace is as good.
        let Ok(mounts) = fs::read_to_string(path.join("mountinfo")) else {
            seen.remove(&(namespace.dev(), namespace.ino()));
            continue;
        };
        let mounted =
            |diff_id: &&String| digest_hex(diff_id).is_some_and(|hex| mounts.contains(hex));
        found.extend(diff_ids.iter().filter(mounted).cloned());
    }
    found
}
