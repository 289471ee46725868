//! The languages as data: default interpreter or compiler, how a query is run, what `*` means (19.03.3 runner, its language modules,
//! with their broken commands repaired: each file is its own argument, default paths exist or are looked up on PATH).

/// One row of the table.
///
/// Words of commands may contain `{rt}` (the runtime), `{file}` (the query's temporary file), `{dir}` (its folder),
/// `{class}` (the Java class of the query). A word `{all:.c}` stands for all files with this ending below the working folder,
/// `{first:target/debug}` for the first executable in this folder.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Language {
    /// The runtime type.
    pub(crate) name: &'static str,
    /// Where the runtime is if the image does not say; names without a slash are looked up on PATH, the first that exists is taken.
    pub(crate) runtimes: &'static [&'static str],
    /// Set where the container does not set it.
    pub(crate) environment: &'static [(&'static str, &'static str)],
    /// What `code` does.
    pub(crate) query: Query,
    /// What `build *` does; the first rule whose file exists.
    pub(crate) build: &'static [Rule],
    /// What `exec *` does; likewise.
    pub(crate) exec: &'static [Rule],
    /// What `clean *` does; likewise.
    pub(crate) clean: &'static [Rule],
}

/// How a query is run.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Query {
    /// By the Python helper, which keeps state.
    Python,
    /// The code, after the prefix, is written to a file with this ending, these commands are run, and the file is deleted.
    File {
        /// The ending of the file's name.
        suffix: &'static str,
        /// Written before the code.
        prefix: &'static str,
        /// The commands.
        steps: &'static [&'static [&'static str]],
    },
    /// Not at all: exit code 127.
    Unavailable,
}

/// A command for when a file exists.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// The file in the working folder, or a word as in commands that must not come out empty.
    pub(crate) needs: &'static str,
    /// The commands, in order, up to the first that fails.
    pub(crate) steps: &'static [&'static [&'static str]],
}

/// `build *` prefers this for every language.
pub(crate) const MAKE: Rule = Rule {
    needs: "Makefile",
    steps: &[&["make"]],
};

const MAKE_CLEAN: &[Rule] = &[Rule {
    needs: "Makefile",
    steps: &[&["make", "clean"]],
}];
const RUN_MAIN: Rule = Rule {
    needs: "main",
    steps: &[&["./main"]],
};
const RUN_A_OUT: Rule = Rule {
    needs: "a.out",
    steps: &[&["./a.out"]],
};
const NOTHING: &[Rule] = &[];

/// An interpreter that runs files and keeps no state between queries.
const fn interpreter(
    name: &'static str,
    runtimes: &'static [&'static str],
    query: Query,
    exec: &'static [Rule],
) -> Language {
    Language {
        name,
        runtimes,
        environment: &[],
        query,
        build: NOTHING,
        exec,
        clean: NOTHING,
    }
}

/// A query that an interpreter runs from a file.
const fn script(suffix: &'static str, prefix: &'static str) -> Query {
    Query::File {
        suffix,
        prefix,
        steps: &[&["{rt}", "{file}"]],
    }
}

/// The table.
pub(crate) const LANGUAGES: &[Language] = &[
    Language {
        name: "python",
        runtimes: &["/usr/bin/python", "python3", "python", "python2"],
        environment: &[(
            "PATH",
            "/usr/local/nvidia/bin:/usr/local/cuda/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )],
        query: Query::Python,
        build: &[Rule {
            needs: "setup.py",
            steps: &[&["{rt}", "-m", "pip", "install", "-e", "."]],
        }],
        exec: &[Rule {
            needs: "main.py",
            steps: &[&["{rt}", "main.py"]],
        }],
        clean: NOTHING,
    },
    Language {
        name: "c",
        runtimes: &["/usr/bin/gcc", "gcc", "cc", "clang"],
        environment: &[],
        query: Query::File {
            suffix: ".c",
            prefix: "",
            steps: &[
                &[
                    "{rt}",
                    "{file}",
                    "-Wall",
                    "-o",
                    "{dir}/main",
                    "-lrt",
                    "-lm",
                    "-lpthread",
                    "-ldl",
                ],
                &["{dir}/main"],
            ],
        },
        build: &[Rule {
            needs: "main.c",
            steps: &[&[
                "{rt}",
                "-Wall",
                "-o",
                "main",
                "{all:.c}",
                "-lrt",
                "-lm",
                "-lpthread",
                "-ldl",
            ]],
        }],
        exec: &[RUN_MAIN, RUN_A_OUT],
        clean: MAKE_CLEAN,
    },
    Language {
        name: "cpp",
        runtimes: &["/usr/bin/g++", "g++", "c++", "clang++"],
        environment: &[],
        query: Query::File {
            suffix: ".cpp",
            prefix: "",
            steps: &[
                &[
                    "{rt}",
                    "{file}",
                    "-Wall",
                    "-o",
                    "{dir}/main",
                    "-lrt",
                    "-lm",
                    "-lpthread",
                    "-ldl",
                ],
                &["{dir}/main"],
            ],
        },
        build: &[Rule {
            needs: "main.cpp",
            steps: &[&[
                "{rt}",
                "-Wall",
                "-o",
                "main",
                "{all:.cpp}",
                "-lrt",
                "-lm",
                "-lpthread",
                "-ldl",
            ]],
        }],
        exec: &[RUN_MAIN, RUN_A_OUT],
        clean: MAKE_CLEAN,
    },
    Language {
        name: "golang",
        runtimes: &["/usr/local/go/bin/go", "/usr/local/bin/go", "go"],
        environment: &[
            ("GOPATH", "/home/work"),
            (
                "PATH",
                "/home/work/bin:/go/bin:/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            ),
        ],
        query: Query::File {
            suffix: ".go",
            prefix: "",
            steps: &[&["{rt}", "run", "{file}"]],
        },
        build: &[Rule {
            needs: "main.go",
            steps: &[&["{rt}", "build", "-o", "main", "{all:.go}"]],
        }],
        exec: &[RUN_MAIN],
        clean: NOTHING,
    },
    Language {
        name: "rust",
        runtimes: &["/usr/bin/rustc", "rustc"],
        environment: &[],
        query: Query::File {
            suffix: ".rs",
            prefix: "",
            steps: &[&["{rt}", "-o", "{dir}/main", "{file}"], &["{dir}/main"]],
        },
        build: &[
            Rule {
                needs: "Cargo.toml",
                steps: &[&["cargo", "build"]],
            },
            Rule {
                needs: "main.rs",
                steps: &[&["{rt}", "-o", "main", "main.rs"]],
            },
        ],
        exec: &[
            Rule {
                needs: "{first:target/debug}",
                steps: &[&["{first:target/debug}"]],
            },
            Rule {
                needs: "{first:target/release}",
                steps: &[&["{first:target/release}"]],
            },
            RUN_MAIN,
        ],
        clean: NOTHING,
    },
    Language {
        name: "java",
        runtimes: &["/usr/lib/jvm/java-1.8-openjdk/bin/java", "java"],
        environment: &[],
        query: Query::File {
            suffix: ".java",
            prefix: "",
            steps: &[
                &["javac", "-d", "{dir}", "{file}"],
                &["{rt}", "-classpath", "{dir}", "{class}"],
            ],
        },
        build: &[Rule {
            needs: "{all:.java}",
            steps: &[&["javac", "-d", ".", "{all:.java}"]],
        }],
        exec: &[
            Rule {
                needs: "main/Main.class",
                steps: &[&["{rt}", "main.Main"]],
            },
            Rule {
                needs: "Main.class",
                steps: &[&["{rt}", "Main"]],
            },
        ],
        clean: NOTHING,
    },
    Language {
        name: "haskell",
        runtimes: &["/usr/bin/ghc", "ghc"],
        environment: &[(
            "PATH",
            "/root/.cabal/bin:/root/.local/bin:/opt/cabal/2.0/bin:/opt/ghc/8.2.1/bin:\
             /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )],
        query: Query::File {
            suffix: ".hs",
            prefix: "",
            steps: &[&["runhaskell", "{file}"]],
        },
        build: &[Rule {
            needs: "{all:.hs}",
            steps: &[&["{rt}", "--make", "-o", "main", "{all:.hs}"]],
        }],
        exec: &[RUN_MAIN],
        clean: NOTHING,
    },
    Language {
        name: "julia",
        runtimes: &["/usr/local/julia/bin/julia", "julia"],
        environment: &[
            ("JULIA_LOAD_PATH", ":/opt/julia"),
            (
                "PATH",
                "/usr/local/julia:/usr/local/julia/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            ),
        ],
        query: script(".jl", ""),
        build: NOTHING,
        exec: &[Rule {
            needs: "main.jl",
            steps: &[&["{rt}", "main.jl"]],
        }],
        clean: NOTHING,
    },
    Language {
        name: "r",
        runtimes: &["/usr/bin/R", "R"],
        environment: &[],
        query: Query::File {
            suffix: ".R",
            prefix: "",
            steps: &[&["Rscript", "{file}"]],
        },
        build: NOTHING,
        exec: &[Rule {
            needs: "main.R",
            steps: &[&["Rscript", "main.R"]],
        }],
        clean: NOTHING,
    },
    interpreter(
        "lua",
        &["/usr/local/bin/lua", "lua", "lua5.4", "lua5.3"],
        script(".lua", ""),
        &[Rule {
            needs: "main.lua",
            steps: &[&["{rt}", "main.lua"]],
        }],
    ),
    interpreter(
        "nodejs",
        &["/usr/local/bin/node", "node", "nodejs"],
        script(".js", ""),
        &[Rule {
            needs: "main.js",
            steps: &[&["{rt}", "main.js"]],
        }],
    ),
    interpreter(
        "octave",
        &["/usr/bin/octave-cli", "octave-cli", "octave"],
        script(".m", ""),
        &[Rule {
            needs: "main.m",
            steps: &[&["{rt}", "main.m"]],
        }],
    ),
    interpreter(
        "php",
        &["/usr/bin/php", "php"],
        script(".php", "<?php\n\n"),
        &[Rule {
            needs: "main.php",
            steps: &[&["{rt}", "main.php"]],
        }],
    ),
    interpreter(
        "scheme",
        &["/usr/bin/scheme", "scheme"],
        Query::File {
            suffix: ".scm",
            prefix: "",
            steps: &[&[
                "/bin/sh",
                "-c",
                "exec \"$0\" --quiet < \"$1\"",
                "{rt}",
                "{file}",
            ]],
        },
        &[Rule {
            needs: "main.scm",
            steps: &[&["/bin/sh", "-c", "exec \"$0\" --quiet < main.scm", "{rt}"]],
        }],
    ),
];

/// For types that are not in the table (`app`, `git`, vendors' own): batch commands work, queries and `*` do not.
pub(crate) const OTHER: Language = interpreter("", &[], Query::Unavailable, NOTHING);

/// The row of a runtime type.
pub(crate) fn find(name: &str) -> Option<&'static Language> {
    LANGUAGES.iter().find(|language| language.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_language_of_1903_is_in_the_table() {
        let names = "python c cpp golang rust java haskell julia r lua nodejs octave php scheme";
        assert!(names.split(' ').all(|name| find(name).is_some()));
        assert!(find("cobol").is_none());
    }

    #[test]
    fn every_language_has_a_runtime_and_an_exec_rule() {
        assert!(
            LANGUAGES
                .iter()
                .all(|language| !language.runtimes.is_empty() && !language.exec.is_empty())
        );
    }
}
