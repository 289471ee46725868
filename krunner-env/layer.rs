//! Writes the krunner layer: an OCI layer (plain tar) with the runner and the mount points that agents expect at `/opt/backend.ai`.
//!
//! The same bytes come out for the same binary on every machine: entries are sorted, times and owners are zero.
//! Included by the agent's build script and by the tests of this package; needs the standard library only.

/// One thing in the layer.
#[derive(Debug)]
enum Entry<'a> {
    Folder,
    File { mode: u32, data: &'a [u8] },
    Link { target: &'a str },
}

/// The tar of the layer around this `krunner` binary.
pub fn layer(krunner: &[u8]) -> Vec<u8> {
    const MOUNT_POINT: Entry<'static> = Entry::File {
        mode: 0o644,
        data: b"",
    };
    const PACKAGES: &str = "opt/backend.ai/lib/python3.6/site-packages/ai/backend";
    let mut entries = vec![
        (
            "opt/backend.ai/bin/krunner".to_owned(),
            Entry::File {
                mode: 0o755,
                data: krunner,
            },
        ),
        // Upstream's agent starts the runner by this name.
        (
            "opt/backend.ai/bin/python".to_owned(),
            Entry::Link { target: "krunner" },
        ),
        // Upstream's agent mounts its own files over these.
        ("opt/backend.ai/agent.sock".to_owned(), MOUNT_POINT),
        ("opt/backend.ai/bin/entrypoint.sh".to_owned(), MOUNT_POINT),
        ("opt/backend.ai/bin/jail".to_owned(), MOUNT_POINT),
        ("opt/backend.ai/bin/su-exec".to_owned(), MOUNT_POINT),
        ("opt/backend.ai/hook".to_owned(), Entry::Folder),
        (format!("{PACKAGES}/helpers"), Entry::Folder),
        (format!("{PACKAGES}/kernel"), Entry::Folder),
    ];
    let parents: std::collections::BTreeSet<String> =
        entries.iter().flat_map(|(path, _)| parents(path)).collect();
    entries.extend(parents.into_iter().map(|path| (path, Entry::Folder)));
    entries.sort_by(|(left, _), (right, _)| left.cmp(right));
    let mut tar = Vec::with_capacity(krunner.len() + 32 * BLOCK);
    for (path, entry) in &entries {
        append(&mut tar, path, entry);
    }
    tar.resize(tar.len() + 2 * BLOCK, 0);
    tar
}

const BLOCK: usize = 512;

fn parents(path: &str) -> impl Iterator<Item = String> + '_ {
    path.match_indices('/').map(|(at, _)| path[..at].to_owned())
}

fn append(tar: &mut Vec<u8>, path: &str, entry: &Entry<'_>) {
    let (kind, mode, data, target, path) = match entry {
        Entry::Folder => (b'5', 0o755, &[][..], "", format!("{path}/")),
        Entry::File { mode, data } => (b'0', *mode, *data, "", path.to_owned()),
        Entry::Link { target } => (b'2', 0o777, &[][..], *target, path.to_owned()),
    };
    let mut header = [0_u8; BLOCK];
    let mut put = |at: usize, field: &[u8]| header[at..at + field.len()].copy_from_slice(field);
    assert!(
        path.len() <= 100,
        "{path}: longer than the name field of a tar header"
    );
    put(0, path.as_bytes());
    put(100, format!("{mode:07o}").as_bytes());
    put(108, b"0000000");
    put(116, b"0000000");
    put(124, format!("{:011o}", data.len()).as_bytes());
    put(136, b"00000000000");
    put(148, b"        ");
    put(156, &[kind]);
    put(157, target.as_bytes());
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    tar.extend(header);
    tar.extend(data);
    tar.resize(tar.len().next_multiple_of(BLOCK), 0);
}
