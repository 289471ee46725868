//! `/etc/passwd` and `/etc/group` as text: makes the user `work` known under the wanted numbers.

/// The user's name in kernels (19.03 entrypoint).
const NAME: &str = "work";

/// The user to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct User<'a> {
    /// Its user id.
    pub(crate) uid: u32,
    /// Its group id.
    pub(crate) gid: u32,
    /// Its home folder.
    pub(crate) home: &'a str,
    /// Its shell.
    pub(crate) shell: &'a str,
}

/// `/etc/passwd` with this user. An entry of the name is replaced; an entry of the same number stays, but after ours,
/// so that look-ups by number find ours.
pub(crate) fn passwd(old: &str, user: &User<'_>) -> String {
    let User {
        uid,
        gid,
        home,
        shell,
    } = user;
    with_entry(old, *uid, format!("{NAME}:x:{uid}:{gid}::{home}:{shell}"))
}

/// `/etc/group` with the group of this user, likewise.
pub(crate) fn group(old: &str, gid: u32) -> String {
    with_entry(old, gid, format!("{NAME}:x:{gid}:"))
}

fn with_entry(old: &str, number: u32, entry: String) -> String {
    let number = number.to_string();
    let name_of = |line: &str| line.split(':').next() == Some(NAME);
    let others: Vec<&str> = old
        .lines()
        .filter(|line| !line.is_empty() && !name_of(line))
        .collect();
    let same_number = others
        .iter()
        .position(|line| line.split(':').nth(2) == Some(number.as_str()));
    let at = same_number.unwrap_or(others.len());
    let mut lines: Vec<&str> = others;
    lines.insert(at, &entry);
    let mut text = lines.join("\n");
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: User<'_> = User {
        uid: 1000,
        gid: 1001,
        home: "/home/work",
        shell: "/bin/sh",
    };

    #[test]
    fn the_user_is_appended() {
        let expected = "root:x:0:0:root:/root:/bin/bash\nwork:x:1000:1001::/home/work:/bin/sh\n";
        assert_eq!(passwd("root:x:0:0:root:/root:/bin/bash", &USER), expected);
        assert_eq!(passwd("", &USER), "work:x:1000:1001::/home/work:/bin/sh\n");
        assert_eq!(group("root:x:0:\n", 1001), "root:x:0:\nwork:x:1001:\n");
    }

    #[test]
    fn an_earlier_work_is_renumbered() {
        let old = "work:x:5:5::/x:/y\nroot:x:0:0:root:/root:/bin/bash\n";
        assert_eq!(
            passwd(old, &USER),
            "root:x:0:0:root:/root:/bin/bash\nwork:x:1000:1001::/home/work:/bin/sh\n"
        );
    }

    #[test]
    fn an_entry_of_the_same_number_stays_behind_ours() {
        let old = "root:x:0:0:root:/root:/bin/bash\nubuntu:x:1000:1000::/home/ubuntu:/bin/bash\n";
        let expected = "root:x:0:0:root:/root:/bin/bash\nwork:x:1000:1001::/home/work:/bin/sh\nubuntu:x:1000:1000::/home/ubuntu:/bin/bash\n";
        assert_eq!(passwd(old, &USER), expected);
    }

    #[test]
    fn editing_twice_changes_nothing_more() {
        let once = passwd("root:x:0:0:root:/root:/bin/bash\n", &USER);
        assert_eq!(passwd(&once, &USER), once);
    }
}
