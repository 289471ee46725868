//! Query mode at the IPython level: IPython and matplotlib are installed once for all tests of this machine.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::support::{Agent, Builder, Kernel};

const PACKAGES: [&str; 4] = ["ipython", "matplotlib-inline", "matplotlib", "jedi"];

/// The Python of the virtual environment with IPython, made on first use and kept in the cache folder.
fn python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let home = PathBuf::from(std::env::var_os("HOME").expect("a home"));
        let version = run(Command::new("/usr/bin/python3").args([
            "-c",
            "import sys; print('%d.%d' % sys.version_info[:2], end='')",
        ]));
        let cache = home.join(".cache/backendai-agent");
        std::fs::create_dir_all(&cache).expect("a cache folder");
        let place = cache.join(format!("krunner-ipython-{version}"));
        let lock = std::fs::File::create(cache.join("krunner-ipython.lock")).expect("a lock file");
        lock.lock().expect("a lock");
        if !place.join("complete").exists() {
            run(Command::new("/usr/bin/python3")
                .args(["-m", "venv", "--clear"])
                .arg(&place));
            run(Command::new(place.join("bin/python"))
                .args(["-m", "pip", "install", "--quiet"])
                .args(PACKAGES));
            std::fs::write(place.join("complete"), "").expect("a file");
        }
        place.join("bin/python")
    })
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("it starts");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

fn kernel() -> (Kernel, Agent) {
    let kernel = Builder::new("python", python().to_str()).start();
    let agent = kernel.agent();
    (kernel, agent)
}

fn media(bodies: &[(String, Vec<u8>)]) -> Vec<(String, String)> {
    let parts = |(kind, body): &(String, Vec<u8>)| {
        assert_eq!(kind, "media");
        let value: serde_json::Value = serde_json::from_slice(body).expect("JSON");
        let text = |name: &str| value[name].as_str().expect("text").to_owned();
        (text("type"), text("data"))
    };
    bodies.iter().map(parts).collect()
}

#[test]
fn values_magics_and_shell_commands_work() {
    let (_kernel, mut agent) = kernel();
    let run = agent.query("print('hello'); import sys; print('err', file=sys.stderr); 1+1");
    assert_eq!((run.out(), run.err(), run.code()), ("hello\n2", "err\n", 0));
    assert_eq!(
        agent.query("x = !echo from a shell\nx[0]").out(),
        "'from a shell'"
    );
    assert_eq!(agent.query("%lsmagic").code(), 0);
    assert_eq!(agent.query("_ = 5; In[1][:5]").out(), "'print'");
    assert_eq!(
        agent
            .query("import asyncio\nawait asyncio.sleep(0, 'awaited')")
            .out(),
        "'awaited'"
    );
    assert!(agent.query("!echo piped").out().contains("piped"));
}

#[test]
fn an_exception_is_shown_as_ipython_shows_it_and_ends_with_1() {
    let (_kernel, mut agent) = kernel();
    let run = agent.query("1/0");
    assert!(
        run.err().contains("ZeroDivisionError")
            && run.err().contains("Traceback (most recent call last)"),
        "{}",
        run.err()
    );
    assert!(run.err().contains("\x1b["), "no colours: {}", run.err());
    assert!(!run.err().ends_with('\n'), "{}", run.err());
    assert_eq!((run.out(), run.code()), ("", 1));
    assert_eq!(agent.query("if x\n").code(), 1);
    assert_eq!(agent.query("raise SystemExit(3)").code(), 3);
    assert_eq!(agent.query("'alive'").out(), "'alive'");
    assert_eq!(agent.query("exit").code(), 0);
    assert_eq!(agent.query("'still alive'").out(), "'still alive'");
}

#[test]
fn displayed_objects_are_media_or_html() {
    let (_kernel, mut agent) = kernel();
    let run = agent
        .query("from IPython.display import HTML, SVG, Image, display\ndisplay(HTML('<b>b</b>'))");
    assert_eq!(
        (run.out(), run.others.clone()),
        ("", vec![("html".to_owned(), b"<b>b</b>".to_vec())])
    );
    let run = agent.query("SVG('<svg xmlns=\"http://www.w3.org/2000/svg\"/>')");
    let shown = media(&run.others);
    assert_eq!(shown.len(), 1);
    assert!(
        shown[0].0 == "image/svg+xml" && shown[0].1.starts_with("<svg"),
        "{shown:?}"
    );
    let png = "b'\\x89PNG\\r\\n\\x1a\\n' + bytes(16)";
    let shown = media(&agent.query(&format!("Image({png}, format='png')")).others);
    assert_eq!(shown.len(), 1);
    assert!(
        shown[0].1.starts_with("data:image/png;base64,iVBOR") && shown[0].1.ends_with('\n'),
        "{shown:?}"
    );
}

#[test]
fn figures_are_shown_at_the_end_of_the_query() {
    let (_kernel, mut agent) = kernel();
    let run = agent.query("import matplotlib.pyplot as plt\n_ = plt.plot([1, 2])");
    let shown = media(&run.others);
    assert_eq!(shown.len(), 1, "{}", run.err());
    assert!(
        shown[0].0 == "image/png" && shown[0].1.starts_with("data:image/png;base64,iVBOR"),
        "{shown:?}"
    );
    assert!(agent.query("1").others.is_empty());
}

#[test]
fn input_interrupt_and_completion_work() {
    let (_kernel, mut agent) = kernel();
    agent.send("code", "name = input('your name? '); print('hi', name)");
    assert_eq!(agent.recv_until("waiting-input").out(), "your name? ");
    agent.send("input", "Joe");
    assert_eq!(agent.recv_until("finished").out(), "hi Joe\n");
    agent.send("code", "import time\nprint('begun')\ntime.sleep(1000)");
    agent.expect_stdout("begun\n");
    agent.send("interrupt", "");
    let run = agent.recv_until("finished");
    assert!(run.err().contains("KeyboardInterrupt"), "{}", run.err());
    assert_eq!(run.code(), 1);
    agent.send(
        "complete",
        r#"{"code":"impo","row":0,"col":4,"line":"impo","post":""}"#,
    );
    assert_eq!(
        agent.recv(),
        ("completion".to_owned(), br#"["import"]"#.to_vec())
    );
}

#[test]
fn an_interrupt_during_the_start_is_not_lost() {
    let (_kernel, mut agent) = kernel();
    agent.send("code", "import time; time.sleep(1000)");
    agent.send("interrupt", "");
    assert_eq!(agent.recv_until("finished").code(), 1);
}

#[test]
fn the_level_can_be_forced_to_plain() {
    let kernel = Builder::new("python", python().to_str())
        .env("BACKENDAI_PYTHON_LEVEL", "plain")
        .start();
    assert_eq!(kernel.agent().query("'In' in globals()").out(), "False");
}

#[test]
fn a_broken_ipython_falls_back_to_plain_with_a_word_about_it() {
    let builder = Builder::new("python", Some("/usr/bin/python3"))
        .file("work/IPython.py", "raise ImportError('broken')\n");
    let kernel = builder.start();
    let mut agent = kernel.agent();
    let run = agent.query("1+1");
    assert_eq!((run.out(), run.code()), ("2", 0));
    assert!(run.err().contains("broken"), "{}", run.err());
}
