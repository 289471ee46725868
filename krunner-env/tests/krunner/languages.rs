//! Languages other than Python, as far as this machine has their tools.

use crate::support::Builder;

#[test]
fn a_c_query_is_compiled_and_run_and_leaves_no_file() {
    let kernel = Builder::new("c", None).start();
    let mut agent = kernel.agent();
    let run = agent.query("#include <stdio.h>\nint main(void) { puts(\"from c\"); return 4; }\n");
    assert_eq!((run.out(), run.code()), ("from c\n", 4));
    assert_eq!(kernel.work().read_dir().expect("a folder").count(), 0);
    let run = agent.query("int main(void) { return x; }\n");
    assert_ne!(run.code(), 0);
    assert!(run.err().contains("error"), "{}", run.err());
}

#[test]
fn a_c_program_of_several_files_is_built_and_run() {
    let builder = Builder::new("c", Some("/usr/bin/gcc"));
    std::fs::create_dir(builder.work().join("a folder")).expect("a folder");
    let kernel = builder
        .file(
            "work/main.c",
            "int answer(void);\nint main(void) { return answer(); }\n",
        )
        .file(
            "work/a folder/answer.c",
            "int answer(void) { return 42; }\n",
        )
        .start();
    let mut agent = kernel.agent();
    agent.send("build", "*");
    assert_eq!(agent.recv_until("build-finished").code(), 0);
    assert_eq!(agent.exec("*").code(), 42);
}

#[test]
fn a_missing_compiler_is_named() {
    let kernel = Builder::new("octave", None).env("PATH", "/nowhere").start();
    let run = kernel.agent().query("1");
    assert_eq!(run.code(), 127);
    assert!(run.err().contains("octave"), "{}", run.err());
}
