//! From an op to the commands that it runs: pure but for looking at which files exist.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::environ::Environ;
use crate::language::{Language, MAKE, Rule};

/// Exit code for what cannot be run: no main file, no tool (19.03.3 runner).
pub(crate) const CANNOT_RUN: i32 = 127;

/// The part of a batch run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// `clean`
    Clean,
    /// `build`
    Build,
    /// `exec`
    Exec,
}

/// What is to be done for an op.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Nothing: this is the exit code, after this sentence on stderr.
    Done(i32, Option<String>),
    /// These commands, in order, up to the first that fails.
    Run(Vec<Vec<OsString>>),
}

/// Where the commands of a plan will run.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    /// The language of the kernel.
    pub(crate) language: &'a Language,
    /// The interpreter or compiler.
    pub(crate) runtime: &'a Path,
    /// The working folder.
    pub(crate) folder: &'a Path,
}

/// The runtime that is there: the image's path, else the table's, each looked up on PATH too. If nothing is there, the first wish
/// is returned, so that the error names it.
pub(crate) fn find_runtime(
    language: &Language,
    wanted: Option<&Path>,
    environ: &Environ,
    folder: &Path,
) -> PathBuf {
    let mut wishes: Vec<&OsStr> = wanted.into_iter().map(Path::as_os_str).collect();
    // An image whose path is wrong often has the program elsewhere: `/usr/bin/python` where only `python3` exists.
    wishes.extend(wanted.and_then(Path::file_name));
    wishes.extend(language.runtimes.iter().map(OsStr::new));
    let found = wishes.iter().find_map(|wish| environ.find(wish, folder));
    found.unwrap_or_else(|| wishes.first().map_or_else(PathBuf::new, PathBuf::from))
}

/// Plans a batch command: empty skips, `*` asks the table, all else is for the shell.
pub(crate) fn batch(phase: Phase, command: &str, place: &Place<'_>) -> Plan {
    match command.trim() {
        "" => Plan::Done(0, None),
        "*" => heuristic(phase, place),
        _ => Plan::Run(vec![
            ["/bin/sh", "-c", command].map(OsString::from).to_vec(),
        ]),
    }
}

fn heuristic(phase: Phase, place: &Place<'_>) -> Plan {
    let (rules, make): (&[Rule], &[Rule]) = match phase {
        Phase::Clean => (place.language.clean, &[]),
        Phase::Build => (place.language.build, &[MAKE]),
        Phase::Exec => (place.language.exec, &[]),
    };
    if let Some(rule) = make
        .iter()
        .chain(rules)
        .find(|rule| is_there(rule.needs, place))
    {
        return Plan::Run(steps(rule.steps, place, None));
    }
    match phase {
        Phase::Clean => Plan::Done(0, None),
        Phase::Build if rules.is_empty() || place.language.name == "python" => Plan::Done(0, None),
        Phase::Build | Phase::Exec => {
            let wanted: Vec<&str> = rules.iter().map(|rule| wanted_name(rule.needs)).collect();
            let sentence = if wanted.is_empty() {
                "no default for this kind of kernel: give a command instead of *".to_owned()
            } else {
                format!(
                    "none of these is in {}: {}",
                    place.folder.display(),
                    wanted.join(", ")
                )
            };
            Plan::Done(CANNOT_RUN, Some(sentence))
        }
    }
}

fn wanted_name(needs: &str) -> &str {
    needs
        .split_once(':')
        .map_or(needs, |(_, name)| name.trim_end_matches('}'))
}

fn is_there(needs: &str, place: &Place<'_>) -> bool {
    if needs.starts_with('{') {
        !expand(needs, place, None).is_empty()
    } else {
        place.folder.join(needs).exists()
    }
}

/// The file of a query, for its words in commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct QueryFile {
    /// The folder made for the query.
    pub(crate) folder: PathBuf,
    /// The file in it.
    pub(crate) file: PathBuf,
    /// The Java class in it.
    pub(crate) class: String,
}

/// Fills in the words of the table's commands.
pub(crate) fn steps(
    steps: &[&[&str]],
    place: &Place<'_>,
    query: Option<&QueryFile>,
) -> Vec<Vec<OsString>> {
    steps
        .iter()
        .map(|words| {
            words
                .iter()
                .flat_map(|word| expand(word, place, query))
                .collect()
        })
        .collect()
}

fn expand(word: &str, place: &Place<'_>, query: Option<&QueryFile>) -> Vec<OsString> {
    if let Some(ending) = word
        .strip_prefix("{all:")
        .and_then(|rest| rest.strip_suffix('}'))
    {
        let mut found = Vec::new();
        collect(place.folder, Path::new(""), ending, &mut found);
        return found;
    }
    if let Some(folder) = word
        .strip_prefix("{first:")
        .and_then(|rest| rest.strip_suffix('}'))
    {
        return first_program(place.folder, folder).into_iter().collect();
    }
    let whole = match (word, query) {
        ("{rt}", _) => place.runtime.into(),
        ("{file}", Some(query)) => query.file.clone().into(),
        ("{class}", Some(query)) => query.class.clone().into(),
        (_, Some(query)) => match word.strip_prefix("{dir}") {
            Some(rest) => {
                let mut path = query.folder.clone().into_os_string();
                path.push(rest);
                path
            }
            None => word.into(),
        },
        (_, None) => word.into(),
    };
    vec![whole]
}

/// All files with this ending below the folder, sorted, relative to it. Hidden folders and links are passed over.
fn collect(root: &Path, below: &Path, ending: &str, found: &mut Vec<OsString>) {
    const MOST: usize = 10_000;
    let Ok(entries) = root.join(below).read_dir() else {
        return;
    };
    let mut entries: Vec<_> = entries.flatten().collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name();
        let hidden = name.as_encoded_bytes().starts_with(b".");
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && !hidden => {
                collect(root, &below.join(&name), ending, found)
            }
            Ok(kind)
                if kind.is_file()
                    && !hidden
                    && name.as_encoded_bytes().ends_with(ending.as_bytes())
                    && found.len() < MOST =>
            {
                found.push(below.join(&name).into());
            }
            _ => {}
        }
    }
}

fn first_program(root: &Path, folder: &str) -> Option<OsString> {
    let mut entries: Vec<_> = root.join(folder).read_dir().ok()?.flatten().collect();
    entries.sort_by_key(std::fs::DirEntry::file_name);
    let program = entries.iter().find(|entry| {
        entry
            .metadata()
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    })?;
    Some(Path::new(".").join(folder).join(program.file_name()).into())
}

/// The name that javac wants for a file: that of its public class, else `main`.
pub(crate) fn java_class(code: &str) -> String {
    let mut words = code
        .split(|c: char| c.is_whitespace() || c == '{')
        .filter(|word| !word.is_empty());
    while let Some(word) = words.next() {
        if word == "public" {
            let mut rest = words
                .clone()
                .skip_while(|word| matches!(*word, "final" | "abstract" | "strictfp"));
            if rest.next() == Some("class")
                && let Some(name) = rest.next()
            {
                return name
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || matches!(c, '_' | '$'))
                    .collect();
            }
        }
    }
    "main".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::language;

    fn plan(language: &str, files: &[&str], phase: Phase, command: &str) -> Plan {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for file in files {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().expect("below the folder")).expect("a folder");
            std::fs::write(&path, "").expect("a file");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
                .expect("permissions");
        }
        let language = language::find(language).unwrap_or(&language::OTHER);
        batch(
            phase,
            command,
            &Place {
                language,
                runtime: Path::new("/rt"),
                folder: folder.path(),
            },
        )
    }

    fn run(steps: &[&[&str]]) -> Plan {
        Plan::Run(
            steps
                .iter()
                .map(|words| words.iter().map(OsString::from).collect())
                .collect(),
        )
    }

    #[test]
    fn an_empty_command_is_skipped() {
        for phase in [Phase::Clean, Phase::Build, Phase::Exec] {
            assert_eq!(plan("python", &[], phase, ""), Plan::Done(0, None));
        }
    }

    #[test]
    fn text_goes_to_the_shell_in_every_kind_of_kernel() {
        assert_eq!(
            plan("app", &[], Phase::Exec, "echo hi"),
            run(&[&["/bin/sh", "-c", "echo hi"]])
        );
    }

    #[test]
    fn a_makefile_wins_for_build_and_c_cleans_with_it() {
        assert_eq!(
            plan("rust", &["Makefile", "main.rs"], Phase::Build, "*"),
            run(&[&["make"]])
        );
        assert_eq!(
            plan("c", &["Makefile"], Phase::Clean, "*"),
            run(&[&["make", "clean"]])
        );
        assert_eq!(
            plan("python", &["Makefile"], Phase::Clean, "*"),
            Plan::Done(0, None)
        );
    }

    #[test]
    fn each_c_file_is_its_own_argument() {
        let expected = run(&[&[
            "/rt",
            "-Wall",
            "-o",
            "main",
            "lib/a b.c",
            "main.c",
            "-lrt",
            "-lm",
            "-lpthread",
            "-ldl",
        ]]);
        assert_eq!(
            plan("c", &["main.c", "lib/a b.c", ".git/x.c"], Phase::Build, "*"),
            expected
        );
    }

    #[test]
    fn rust_runs_the_first_executable() {
        assert_eq!(
            plan(
                "rust",
                &["target/debug/b", "target/debug/a", "main"],
                Phase::Exec,
                "*"
            ),
            run(&[&["./target/debug/a"]])
        );
        assert_eq!(
            plan("rust", &["main"], Phase::Exec, "*"),
            run(&[&["./main"]])
        );
    }

    #[test]
    fn a_missing_main_file_is_127_with_a_reason() {
        let Plan::Done(CANNOT_RUN, Some(reason)) = plan("octave", &["main.js"], Phase::Exec, "*")
        else {
            panic!("it ran")
        };
        assert!(reason.contains("main.m"), "{reason}");
        let Plan::Done(CANNOT_RUN, Some(reason)) = plan("java", &[], Phase::Build, "*") else {
            panic!("it ran")
        };
        assert!(reason.ends_with(".java"), "{reason}");
    }

    #[test]
    fn python_without_setup_py_needs_no_build() {
        assert_eq!(plan("python", &[], Phase::Build, "*"), Plan::Done(0, None));
    }

    #[test]
    fn the_java_class_is_read_from_the_code() {
        assert_eq!(
            java_class("import x;\npublic final class Hello{ }"),
            "Hello"
        );
        assert_eq!(java_class("public class A<T> {"), "A");
        assert_eq!(java_class("class Quiet {}"), "main");
        assert_eq!(java_class(""), "main");
    }

    #[test]
    fn a_wrong_runtime_path_falls_back_to_path() {
        let environ = Environ::for_kernel(&language::OTHER, Path::new("/"), "PATH=/bin:/usr/bin");
        let found = find_runtime(
            &language::OTHER,
            Some(Path::new("/nowhere/sh")),
            &environ,
            Path::new("/"),
        );
        assert_eq!(found, PathBuf::from("/bin/sh"));
        let missing = find_runtime(
            &language::OTHER,
            Some(Path::new("/nowhere/x-y-z")),
            &environ,
            Path::new("/"),
        );
        assert_eq!(missing, PathBuf::from("/nowhere/x-y-z"));
    }
}
