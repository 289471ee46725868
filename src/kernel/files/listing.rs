//! Listing a folder in the words of the original: Python's `json.dumps` of `os.stat` (19.03 agent, `_list_files`).

use std::fmt::Write;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Dir, FileType, OFlags, Stat, statat};

use super::view::reopen;

/// Entries of one listing; further ones are left out.
const LIMIT: usize = 100_000;

/// The entries of a folder as JSON text with a final newline, in the folder's order.
///
/// # Errors
/// Those of the file system.
pub fn list(folder: &OwnedFd) -> io::Result<String> {
    let folder = reopen(folder, OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut entries = Vec::new();
    for entry in Dir::read_from(&folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") || entries.len() == LIMIT {
            continue;
        }
        // The link itself: what it leads to may be outside.
        if let Ok(stat) = statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            entries.push(describe(&stat, name.to_bytes()));
        }
    }
    Ok(format!("[{}]\n", entries.join(", ")))
}

fn describe(stat: &Stat, name: &[u8]) -> String {
    format!(
        r#"{{"mode": "{}", "size": {}, "ctime": {}, "mtime": {}, "atime": {}, "filename": {}}}"#,
        mode_text(stat.st_mode),
        stat.st_size,
        seconds(stat.st_ctime, stat.st_ctime_nsec),
        seconds(stat.st_mtime, stat.st_mtime_nsec),
        seconds(stat.st_atime, stat.st_atime_nsec),
        python_json(name),
    )
}

/// A time as Python's float seconds: shortest form, always with a point.
fn seconds(whole: i64, nanos: impl TryInto<u32>) -> String {
    let nanos = f64::from(nanos.try_into().unwrap_or_default());
    #[allow(
        clippy::cast_precision_loss,
        reason = "Python's float has the same precision"
    )]
    let time = whole as f64 + nanos * 1e-9;
    format!("{time:?}")
}

/// `stat.filemode` of Python.
fn mode_text(mode: u32) -> String {
    let kind = match FileType::from_raw_mode(mode) {
        FileType::Directory => 'd',
        FileType::Symlink => 'l',
        FileType::CharacterDevice => 'c',
        FileType::BlockDevice => 'b',
        FileType::Fifo => 'p',
        FileType::Socket => 's',
        _ => '-',
    };
    let mut text = String::from(kind);
    for (shift, special, set, unset) in [
        (6, 0o4000, 's', 'S'),
        (3, 0o2000, 's', 'S'),
        (0, 0o1000, 't', 'T'),
    ] {
        let bits = mode >> shift;
        text.push(if bits & 4 == 0 { '-' } else { 'r' });
        text.push(if bits & 2 == 0 { '-' } else { 'w' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => set,
            (true, false) => unset,
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// A file name as `json.dumps` writes it: ASCII only, undecodable bytes as lone surrogates.
fn python_json(name: &[u8]) -> String {
    let mut text = String::from("\"");
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            push_char(&mut text, c);
        }
        for byte in chunk.invalid() {
            push_unit(&mut text, 0xdc00 + u16::from(*byte));
        }
    }
    text.push('"');
    text
}

fn push_char(text: &mut String, c: char) {
    match c {
        '"' => text.push_str("\\\""),
        '\\' => text.push_str("\\\\"),
        '\n' => text.push_str("\\n"),
        '\r' => text.push_str("\\r"),
        '\t' => text.push_str("\\t"),
        '\u{8}' => text.push_str("\\b"),
        '\u{c}' => text.push_str("\\f"),
        ' '..='~' => text.push(c),
        _ => {
            for unit in c.encode_utf16(&mut [0; 2]) {
                push_unit(text, *unit);
            }
        }
    }
}

fn push_unit(text: &mut String, unit: u16) {
    // Writing to a string cannot fail.
    let _ = write!(text, "\\u{unit:04x}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_as_python_writes_them() {
        assert_eq!(python_json("a\"b".as_bytes()), r#""a\"b""#);
        assert_eq!(python_json("한😀".as_bytes()), r#""\ud55c\ud83d\ude00""#);
        assert_eq!(python_json(b"x\xff"), r#""x\udcff""#);
        assert_eq!(python_json(b"\x01\x7f"), r#""\u0001\u007f""#);
    }

    #[test]
    fn modes_are_written_as_python_writes_them() {
        assert_eq!(mode_text(0o100_644), "-rw-r--r--");
        assert_eq!(mode_text(0o040_755), "drwxr-xr-x");
        assert_eq!(mode_text(0o104_755), "-rwsr-xr-x");
        assert_eq!(mode_text(0o041_777), "drwxrwxrwt");
        assert_eq!(mode_text(0o120_777), "lrwxrwxrwx");
    }

    #[test]
    fn times_have_a_point() {
        assert_eq!(seconds(1, 0_u32), "1.0");
        assert_eq!(seconds(1_574_562_123, 500_000_000_u32), "1574562123.5");
    }
}
