//! Which users and groups of the machine an ordinary user may give to a user namespace: `/etc/subuid`, `/etc/subgid`.

use std::fs;
use std::io::ErrorKind;
use std::process::{Command, Stdio};

use super::RootlessError;

/// How many users and groups images count on: the runner's own user has number 9001, `nobody` 65534.
const ENOUGH: u64 = 65_535;

/// Users or groups with numbers one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    first: u32,
    count: u32,
}

impl Range {
    fn meets(self, other: Self) -> bool {
        let end = |range: Self| u64::from(range.first) + u64::from(range.count);
        u64::from(self.first) < end(other) && u64::from(other.first) < end(self)
    }
}

/// One of the two kinds of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Users,
    Groups,
}

impl Kind {
    /// Where the ranges are, and the program that maps them.
    pub(super) fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Users => ("/etc/subuid", "newuidmap"),
            Self::Groups => ("/etc/subgid", "newgidmap"),
        }
    }
}

/// The ranges of the user with this number.
pub(super) fn ranges(kind: Kind, uid: u32) -> Result<Vec<Range>, RootlessError> {
    let (file, _) = kind.names();
    let text = fs::read_to_string(file).unwrap_or_default();
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    enough(file, uid, user_name(&passwd, uid), &text)
}

/// The ranges of a user in the text of a file; fewer numbers than images count on are an error.
fn enough(
    file: &str,
    uid: u32,
    name: Option<&str>,
    text: &str,
) -> Result<Vec<Range>, RootlessError> {
    let number = uid.to_string();
    let all = parse(text, &[Some(number.as_str()), name]);
    let sum: u64 = all.iter().map(|range| u64::from(range.count)).sum();
    if sum < ENOUGH {
        return Err(RootlessError::NoRange {
            file: file.to_owned(),
            user: name.unwrap_or(&number).to_owned(),
            count: sum,
        });
    }
    Ok(all)
}

/// The lines `NAME:FIRST:COUNT` that belong to one of the names; others and wrong ones are passed over, as newuidmap does,
/// and so is one that has numbers of an earlier one: Linux maps none twice.
fn parse(text: &str, names: &[Option<&str>]) -> Vec<Range> {
    let range = |line: &str| {
        let mut fields = line.trim().split(':');
        let name = fields.next()?;
        let range = Range {
            first: fields.next()?.parse().ok()?,
            count: fields.next()?.parse().ok()?,
        };
        names.contains(&Some(name)).then_some(range)
    };
    let mut all: Vec<Range> = Vec::new();
    for range in text.lines().filter_map(range) {
        if !all.iter().any(|other| range.meets(*other)) {
            all.push(range);
        }
    }
    all
}

/// The user's name in the text of a password file.
fn user_name(passwd: &str, uid: u32) -> Option<&str> {
    let uid = uid.to_string();
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1) == Some(&uid)).then_some(name)
    })
}

/// The arguments after the process: 0 inside is `own`, what follows are the ranges.
fn arguments(own: u32, ranges: &[Range]) -> Vec<String> {
    let mut numbers = vec![0, u64::from(own), 1];
    let mut inside = 1;
    for range in ranges {
        numbers.extend([inside, range.first.into(), range.count.into()]);
        inside += u64::from(range.count);
    }
    numbers.iter().map(u64::to_string).collect()
}

/// Gives the numbers to the new user namespace of a process.
pub(super) fn map(kind: Kind, process: u32, own: u32, all: &[Range]) -> Result<(), RootlessError> {
    let (file, program) = kind.names();
    let done = Command::new(program)
        .arg(process.to_string())
        .args(arguments(own, all))
        .stdin(Stdio::null())
        .output();
    match done {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(RootlessError::Unmapped {
                program,
                file,
                said: said.trim().to_owned(),
            })
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Err(RootlessError::NoProgram(program)),
        Err(error) => Err(RootlessError::host(format!("run {program}"))(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "other:1000:5\nann:100000:65536\n# text\nann:x:1\n1001:300000:7\n";

    #[test]
    fn ranges_are_found_by_name_and_by_number_and_wrong_lines_passed_over() {
        let names = [Some("1001"), Some("ann")];
        let found: Vec<_> = parse(FILE, &names)
            .iter()
            .map(|it| (it.first, it.count))
            .collect();
        assert_eq!(found, [(100_000, 65_536), (300_000, 7)]);
        assert!(parse(FILE, &[Some("7"), None]).is_empty());
    }

    #[test]
    fn numbers_that_are_given_by_name_and_by_number_count_once() {
        let text = "1001:100000:65536\nann:100000:65536\nann:165535:2\nann:165536:2\n";
        let found: Vec<_> = parse(text, &[Some("1001"), Some("ann")])
            .iter()
            .map(|it| (it.first, it.count))
            .collect();
        assert_eq!(found, [(100_000, 65_536), (165_536, 2)]);
    }

    #[test]
    fn too_few_numbers_are_an_error_with_the_file_and_the_remedy() {
        assert_eq!(
            enough("/etc/subuid", 1, Some("ann"), FILE)
                .expect("enough")
                .len(),
            1
        );
        for (name, count) in [("other", "5 "), ("nobody-here", "0 ")] {
            let error = enough("/etc/subuid", 1, Some(name), FILE).expect_err("too few");
            let text = error.to_string();
            for part in ["/etc/subuid", name, count, "usermod --add-subuids"] {
                assert!(text.contains(part), "{part} in {text}");
            }
        }
    }

    #[test]
    fn the_users_own_number_is_root_inside_and_ranges_follow_each_other() {
        let ranges = [(100, 10), (500, 3)].map(|(first, count)| Range { first, count });
        let words = arguments(1000, &ranges);
        assert_eq!(
            words,
            ["0", "1000", "1", "1", "100", "10", "11", "500", "3"]
        );
    }

    #[test]
    fn a_name_is_found_by_its_number() {
        let passwd = "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/home/ann:/bin/sh\n";
        assert_eq!(user_name(passwd, 1000), Some("ann"));
        assert_eq!(user_name(passwd, 100), None);
    }
}
