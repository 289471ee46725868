//! Query mode at the plain level, under each Python that this machine has.

use std::path::PathBuf;

use crate::support::{Agent, Builder, Kernel, plain_python};

/// The system's Python and, where they are installed, the oldest ones that images have.
pub fn pythons() -> Vec<PathBuf> {
    let home = PathBuf::from(std::env::var_os("HOME").expect("a home"));
    let mut all = vec![PathBuf::from("/usr/bin/python3")];
    for prefix in ["2.7", "3.5", "3.6", "3.13"] {
        let versions = home
            .join(".pyenv/versions")
            .read_dir()
            .into_iter()
            .flatten()
            .flatten();
        let found = versions.filter(|entry| {
            entry
                .file_name()
                .to_string_lossy()
                .starts_with(&format!("{prefix}."))
        });
        all.extend(
            found
                .map(|entry| entry.path().join("bin/python"))
                .filter(|path| path.exists())
                .take(1),
        );
    }
    all
}

/// The check under each of them, in a kernel of its own.
pub fn each(check: impl Fn(&mut Agent, &Kernel)) {
    for python in pythons() {
        println!("{}", python.display());
        let path = python.to_str().expect("text");
        let kernel = Builder::new("python", Some(path))
            .env("BACKENDAI_PYTHON_LEVEL", "plain")
            .start();
        check(&mut kernel.agent(), &kernel);
    }
}

#[test]
fn output_streams_and_a_value_without_newline() {
    each(|agent, _| {
        let run = agent.query("from __future__ import print_function\nimport sys\nprint('hello'); print('err', file=sys.stderr); 1+1");
        assert_eq!((run.out(), run.err(), run.code()), ("hello\n2", "err\n", 0));
    });
}

#[test]
fn variables_live_from_query_to_query() {
    each(|agent, _| {
        assert_eq!(agent.query("x = 20").out(), "");
        assert_eq!(agent.query("def f(y):\n    return x + y\n").out(), "");
        assert_eq!(agent.query("f(22)").out(), "42");
        assert_eq!(agent.query("_ + 1").out(), "43");
        assert_eq!(agent.query("None").out(), "");
        assert_eq!(agent.query("__name__").out(), "'__main__'");
    });
}

#[test]
fn an_exception_shows_the_user_s_own_frames_and_ends_with_1() {
    each(|agent, _| {
        let run = agent.query("def f():\n    return 1 / 0\nf()");
        let expected_end = run.err().lines().last().expect("a last line").to_owned();
        assert!(run.err().starts_with("Traceback (most recent call last):\n  File \"<input-1>\", line 3, in <module>\n    f()"), "{}", run.err());
        assert!(run.err().contains("return 1 / 0"), "{}", run.err());
        assert!(
            expected_end.starts_with("ZeroDivisionError: "),
            "{expected_end}"
        );
        assert!(!run.err().contains("krunner"), "{}", run.err());
        assert_eq!(run.code(), 1);
    });
}

#[test]
fn a_syntax_error_is_shown_and_ends_with_1() {
    each(|agent, _| {
        let run = agent.query("if x\n");
        assert!(run.err().contains("SyntaxError"), "{}", run.err());
        assert!(!run.err().contains("krunner"), "{}", run.err());
        assert_eq!(run.code(), 1);
        assert_eq!(agent.query("'alive'").out(), "'alive'");
    });
}

#[test]
fn system_exit_gives_its_code_and_keeps_the_interpreter() {
    each(|agent, _| {
        agent.query("kept = 1");
        assert_eq!(agent.query("raise SystemExit(3)").code(), 3);
        assert_eq!(agent.query("import sys; sys.exit()").code(), 0);
        let run = agent.query("sys.exit('a reason')");
        assert_eq!((run.err(), run.code()), ("a reason\n", 1));
        assert_eq!(agent.query("kept").out(), "1");
    });
}

#[test]
fn text_beyond_ascii_passes_both_ways() {
    each(|agent, _| {
        let run = agent.query("# -*- coding: utf-8 -*-\nimport sys\nsys.stdout.write(u'\u{d55c}\u{ae00} \u{1f600}\\n')\nname = u'\u{e9}'\nlen(name)");
        assert_eq!(
            (run.out(), run.err()),
            ("\u{d55c}\u{ae00} \u{1f600}\n1", "")
        );
    });
}

#[test]
fn output_of_c_code_and_of_child_processes_arrives_before_the_end() {
    each(|agent, _| {
        let run = agent.query("import os, subprocess\n_ = os.write(1, b'raw\\n')\n_ = subprocess.call('echo child; echo wrong >&2', shell=True)");
        assert_eq!(
            (run.out(), run.err(), run.code()),
            ("raw\nchild\n", "wrong\n", 0)
        );
    });
}

#[test]
fn output_of_a_forked_worker_arrives() {
    each(|agent, _| {
        let code = "import os, sys\npid = os.fork()\nif pid == 0:\n    sys.stdout.write('worker\\n')\n    os._exit(0)\n_ = os.waitpid(pid, 0)";
        assert_eq!(agent.query(code).out(), "worker\n");
        assert_eq!(agent.query("1").out(), "1");
    });
}

#[test]
fn completions_are_a_list_and_never_wait_for_a_run() {
    each(|agent, _| {
        agent.query("first_name = 1\nimport os");
        agent.send(
            "complete",
            r#"{"code":"first_na","row":0,"col":8,"line":"first_na","post":""}"#,
        );
        assert_eq!(
            agent.recv(),
            ("completion".to_owned(), br#"["first_name"]"#.to_vec())
        );
        agent.send("complete", r#"{"code":"x = os.getcw"}"#);
        let (_, body) = agent.recv();
        let list: Vec<String> = serde_json::from_slice(&body).expect("a list");
        assert!(
            list.iter().any(|item| item.starts_with("os.getcwd")),
            "{list:?}"
        );
        agent.send("code", "import time; print('begun'); time.sleep(1000)");
        agent.expect_stdout("begun\n");
        agent.send("complete", r#"{"code":"first_na"}"#);
        assert_eq!(agent.recv(), ("completion".to_owned(), b"[]".to_vec()));
        agent.send("interrupt", "");
        agent.recv_until("finished");
    });
}

#[test]
fn a_dead_interpreter_ends_its_run_with_its_code_and_a_fresh_one_follows() {
    each(|agent, _| {
        agent.query("lost = 1\nimport os");
        let run = agent.query("print('last words')\nos._exit(7)");
        assert_eq!((run.out(), run.code()), ("last words\n", 7));
        assert!(run.err().contains("variables are lost"), "{}", run.err());
        assert_eq!(agent.query("'lost' in globals()").out(), "False");
        let run = agent.query("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)");
        assert_eq!(run.code(), -11);
        assert_eq!(agent.query("2 * 3").out(), "6");
    });
}

#[test]
fn code_that_closes_every_descriptor_gets_a_fresh_interpreter() {
    let kernel = plain_python();
    let mut agent = kernel.agent();
    let run = agent.query("import os; os.closerange(3, 1024); print('gone')");
    assert_ne!(run.code(), 0);
    assert_eq!(agent.query("1+1").out(), "2");
}

#[test]
fn the_working_folder_and_the_session_s_variables_are_there() {
    let builder =
        Builder::new("python", Some("/usr/bin/python3")).env("BACKENDAI_PYTHON_LEVEL", "plain");
    let kernel = builder
        .file("config/environ.txt", "MY_VARIABLE=mine\n")
        .file("work/mine.py", "value = 5\n")
        .start();
    let run = kernel.agent().query(
        "import os, mine; os.environ['MY_VARIABLE'], mine.value, os.environ['HOME'] == os.getcwd()",
    );
    assert_eq!(run.out(), "('mine', 5, True)");
}

#[test]
fn in_the_profile_of_1903_queries_end_with_0() {
    let builder =
        Builder::new("python", Some("/usr/bin/python3")).env("BACKENDAI_PYTHON_LEVEL", "plain");
    let kernel = builder
        .file("config/environ.txt", "BACKENDAI_EXIT_CODES=19.03\n")
        .start();
    let mut agent = kernel.agent();
    assert_eq!(agent.query("1/0").code(), 0);
    assert_eq!(agent.query("raise SystemExit(3)").code(), 0);
    assert_eq!(agent.exec("exit 3").code(), 3);
}

#[test]
fn rich_values_are_html_or_media() {
    each(|agent, _| {
        let run =
            agent.query("class A(object):\n    def _repr_html_(self): return '<b>b</b>'\nA()");
        assert_eq!(run.others, [("html".to_owned(), b"<b>b</b>".to_vec())]);
        let run =
            agent.query("class B(object):\n    def _repr_png_(self): return b'\\x89PNG'\nB()");
        let expected = br#"{"type": "image/png", "data": "data:image/png;base64,iVBORw==\n"}"#;
        assert_eq!(run.others, [("media".to_owned(), expected.to_vec())]);
        assert_eq!(run.out(), "");
    });
}

#[test]
fn a_query_of_several_megabytes_passes() {
    let kernel = plain_python();
    let code = format!("len('''{}''')", "x".repeat(5_000_000));
    assert_eq!(kernel.agent().query(&code).out(), "5000000");
}

#[test]
fn output_appears_while_the_code_still_runs() {
    each(|agent, _| {
        let begin = "import sys, time\nsys.stdout.write('no newline')\n";
        agent.send("code", &format!("{begin}time.sleep(1000)"));
        agent.expect_stdout("no newline");
        agent.send("interrupt", "");
        agent.recv_until("finished");
        agent.send("code", &format!("{begin}while True: pass"));
        agent.expect_stdout("no newline");
        agent.send("interrupt", "");
        agent.recv_until("finished");
    });
}

#[test]
fn the_order_of_both_streams_and_of_child_processes_is_kept() {
    each(|agent, _| {
        let code = "import os, sys\nfor i in range(3):\n    sys.stdout.write('o%d ' % i)\n    sys.stderr.write('e%d ' % i)";
        agent.send("code", code);
        let mut all = Vec::new();
        loop {
            match agent.recv() {
                (kind, _) if kind == "finished" => break,
                (_, body) => all.extend(body),
            }
        }
        assert_eq!(String::from_utf8_lossy(&all), "o0 e0 o1 e1 o2 e2 ");
        let run = agent.query("pid = os.fork()\nif pid == 0: os._exit(0)\n_ = os.waitpid(pid, 0)\nsys.stdout.write('once\\n') and None");
        assert_eq!(run.out(), "once\n");
    });
}

#[test]
fn threads_may_print_during_and_between_runs() {
    each(|agent, _| {
        let code = "import sys, threading, time\ndef speak(n):\n    for _ in range(200):\n        sys.stdout.write('%d\\n' % n)\n\
                    threads = [threading.Thread(target=speak, args=(n,)) for n in range(4)]\n\
                    _ = [thread.start() for thread in threads]\n_ = [thread.join() for thread in threads]";
        let run = agent.query(code);
        assert_eq!(run.out().len(), 4 * 200 * 2);
        agent.query("def later():\n    time.sleep(0.2)\n    sys.stdout.write('later\\n')\nthreading.Thread(target=later).start()");
        agent.expect_stdout("later\n");
        assert_eq!(agent.query("1").out(), "1");
    });
}

#[test]
fn binary_output_and_a_replaced_stdout_work() {
    let kernel = plain_python();
    let mut agent = kernel.agent();
    let run = agent.query("import sys\n_ = sys.stdout.buffer.write(b'\\xff')\nsys.stdout.fileno(), sys.stdout.isatty(), sys.stdout.encoding");
    assert_eq!(run.stdout, b"\xff(1, False, 'utf-8')");
    let run = agent.query("import io, contextlib\nwith contextlib.redirect_stdout(io.StringIO()) as text: print('inside')\ntext.getvalue()");
    assert_eq!(run.out(), r"'inside\n'");
    agent.query("sys.stdout.close()");
    let run = agent.query("1/0");
    assert_eq!(run.code(), 1);
    assert!(run.err().contains("ZeroDivisionError"), "{}", run.err());
}
