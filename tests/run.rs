//! `backendai-agent run` on the engine in memory: output, input, exit status, signals, and that nothing is left.

use std::io::{self, BufReader, Cursor, Write};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use backendai_agent::cli::run::job::Stop;
use backendai_agent::cli::run::terminal::Terminal;
use backendai_agent::cli::run::{Place, RunArgs, run};
use backendai_agent::runtime::ImageInfo;
use backendai_agent::runtime::fake::{FakeRuntime, RunnerScript, RunnerSide, tiny_runner};
use tokio::sync::mpsc;

/// Output that a test can look at.
#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Vec<u8>>>);

impl Screen {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("no panic while held").clone()).expect("text")
    }
}

impl Write for Screen {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic while held").write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Machine {
    runtime: FakeRuntime,
    folder: tempfile::TempDir,
    out: Screen,
    err: Screen,
}

impl Machine {
    fn with(script: RunnerScript) -> Self {
        let runtime = FakeRuntime::new(script);
        runtime.add_image(ImageInfo {
            names: vec!["example.org/lab/python:3".to_owned()],
            id: "sha256:01".to_owned(),
            labels: [("ai.backend.kernelspec".to_owned(), "1".to_owned())].into(),
            ..ImageInfo::default()
        });
        Self {
            runtime,
            folder: tempfile::tempdir().expect("a temporary folder"),
            out: Screen::default(),
            err: Screen::default(),
        }
    }

    fn new() -> Self {
        Self::with(tiny_runner())
    }

    fn place(&self) -> Place {
        let runtime = Arc::new(self.runtime.clone());
        Place {
            runtime: runtime.clone(),
            images: runtime.clone(),
            connect: runtime,
            // Any folder that is there: nothing runs from it.
            krunner: std::env::temp_dir().into(),
            folder: self.folder.path().join("run"),
            listens: false,
            own_user: None,
        }
    }

    /// Runs with these arguments and input, and these requests to stop.
    async fn run_with(&self, args: &RunArgs, input: &str, stops: &[Stop]) -> anyhow::Result<u8> {
        let (sender, receiver) = mpsc::channel(4);
        let input = BufReader::new(Cursor::new(input.to_owned()));
        let (out, err) = (self.out.clone(), self.err.clone());
        let terminal = Terminal::new(Box::new(out), Box::new(err), Box::new(input));
        let place = self.place();
        let running = run(args, &place, terminal, receiver, Instant::now());
        let stopping = async {
            for stop in stops {
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                sender.send(*stop).await.expect("the run listens");
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            code = running => code,
            () = stopping => unreachable!(),
        }
    }

    async fn run(&self, args: &RunArgs) -> anyhow::Result<u8> {
        self.run_with(args, "", &[]).await
    }

    fn assert_nothing_left(&self) {
        assert_eq!(self.runtime.containers(), []);
        let left = self.folder.path().join("run").read_dir();
        assert_eq!(left.map_or(0, Iterator::count), 0);
    }
}

fn options() -> RunArgs {
    RunArgs {
        cpu: "1".to_owned(),
        mem: "64m".to_owned(),
        ..RunArgs::default()
    }
}

fn code(text: &str) -> RunArgs {
    RunArgs {
        code: Some(text.to_owned()),
        ..options()
    }
}

#[tokio::test(start_paused = true)]
async fn output_goes_to_its_streams_and_the_exit_status_is_the_codes() {
    let machine = Machine::new();
    let status = machine.run(&code("out hi\nerr no\nexit 3")).await;
    assert_eq!(status.expect("run"), 3);
    assert_eq!(machine.out.text(), "hi\n");
    let err = machine.err.text();
    assert!(
        err.contains("no\n") && err.contains("first output after "),
        "{err}"
    );
    machine.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn without_code_the_code_is_the_standard_input() {
    let machine = Machine::new();
    let status = machine.run_with(&options(), "out from stdin", &[]).await;
    assert_eq!(status.expect("run"), 0);
    assert_eq!(machine.out.text(), "from stdin\n");
}

#[tokio::test(start_paused = true)]
async fn code_that_asks_gets_the_lines_of_the_input() {
    let machine = Machine::new();
    let asks = code("ask a? \nask b? ");
    let status = machine.run_with(&asks, "one\ntwo\n", &[]).await;
    assert_eq!(status.expect("run"), 0);
    assert_eq!(machine.out.text(), "a? one\nb? two\n");
}

#[tokio::test(start_paused = true)]
async fn an_interrupt_ends_the_code() {
    let machine = Machine::new();
    let hang = code("hang");
    let status = machine.run_with(&hang, "", &[Stop::Interrupt]).await;
    assert_eq!(status.expect("run"), 130);
    machine.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn a_second_interrupt_ends_the_kernel() {
    let machine = Machine::new();
    let deaf = code("sleep 900000000");
    let twice = [Stop::Interrupt, Stop::Interrupt];
    let status = machine.run_with(&deaf, "", &twice).await;
    assert_eq!(status.expect("run"), 130);
    machine.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn a_termination_ends_the_kernel() {
    let machine = Machine::new();
    let deaf = code("sleep 900000000");
    let status = machine.run_with(&deaf, "", &[Stop::Terminate]).await;
    assert_eq!(status.expect("run"), 143);
    machine.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn the_time_limit_ends_the_kernel() {
    let machine = Machine::new();
    let limited = RunArgs {
        timeout: Some(5),
        ..code("out begun\nsleep 900000000")
    };
    assert_eq!(machine.run(&limited).await.expect("run"), 124);
    assert_eq!(machine.out.text(), "begun\n");
    machine.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn a_kernel_that_dies_is_told_and_fails_the_run() {
    let machine = Machine::new();
    let status = machine.run(&code("die 1\nsleep 900000000")).await;
    assert_eq!(status.expect("run"), 1);
    assert!(machine.err.text().contains("the kernel ended"));
    machine.assert_nothing_left();
}

/// Shows every command it gets, and ends the run at `exec`.
fn echo() -> RunnerScript {
    Arc::new(|mut side: RunnerSide| {
        Box::pin(async move {
            while let Some((op, text)) = side.op().await {
                side.say("stdout", format!("{op}({text})\n")).await;
                if op == "exec" {
                    side.say("finished", r#"{"exitCode": 0}"#).await;
                }
            }
        })
    })
}

#[tokio::test(start_paused = true)]
async fn the_first_file_is_run_by_the_images_interpreter() {
    let machine = Machine::with(echo());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("it's.py");
    std::fs::write(&file, "print(1)").expect("written");
    let args = RunArgs {
        files: vec![file],
        ..options()
    };
    assert_eq!(machine.run(&args).await.expect("run"), 0);
    let expected = "clean()\nbuild()\nexec(python3 'it'\\''s.py')\n";
    assert_eq!(machine.out.text(), expected);
    machine.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn commands_are_given_to_the_runner() {
    let machine = Machine::with(echo());
    let args = RunArgs {
        build: Some("make".to_owned()),
        exec: Some("./main".to_owned()),
        ..options()
    };
    assert_eq!(machine.run(&args).await.expect("run"), 0);
    assert_eq!(machine.out.text(), "clean()\nbuild(make)\nexec(./main)\n");
}

#[tokio::test(start_paused = true)]
async fn a_wrong_option_is_named_and_leaves_nothing() {
    let machine = Machine::new();
    let bad = [
        (
            RunArgs {
                mem: "lots".to_owned(),
                ..code("out")
            },
            "--mem",
        ),
        (
            RunArgs {
                cpu: "x".to_owned(),
                ..code("out")
            },
            "--cpu",
        ),
        (
            RunArgs {
                cpu: "100000".to_owned(),
                ..code("out")
            },
            "cpu",
        ),
        (
            RunArgs {
                env: vec!["A".to_owned()],
                ..code("out")
            },
            "--env",
        ),
        (
            RunArgs {
                mount: vec!["/nowhere:x".to_owned()],
                ..code("out")
            },
            "/nowhere",
        ),
        (
            RunArgs {
                mount: vec!["/tmp".to_owned()],
                ..code("out")
            },
            "--mount",
        ),
        (
            RunArgs {
                files: vec!["/nowhere.py".into()],
                ..options()
            },
            "/nowhere.py",
        ),
        (
            RunArgs {
                image: Some("none:1".to_owned()),
                ..code("out")
            },
            "image import",
        ),
    ];
    for (args, name) in bad {
        let error = machine.run(&args).await.expect_err(name);
        assert!(format!("{error:#}").contains(name), "{name}: {error:#}");
        machine.assert_nothing_left();
    }
}

#[tokio::test(start_paused = true)]
async fn without_any_kernel_image_the_remedy_is_named() {
    let machine = Machine {
        runtime: FakeRuntime::default(),
        ..Machine::new()
    };
    let error = machine.run(&code("out")).await.expect_err("no image");
    assert!(error.to_string().contains("image import"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_folder_of_the_machine_is_mounted_where_it_is_wanted() {
    let machine = Machine::with(no_end());
    let folder = tempfile::tempdir().expect("a temporary folder");
    let args = RunArgs {
        mount: vec![format!("{}:data:ro", folder.path().display())],
        ..code("out")
    };
    let looking = async {
        loop {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            if let Some(id) = machine.runtime.containers().first() {
                return machine.runtime.spec(id).expect("made");
            }
        }
    };
    let spec = tokio::select! {
        spec = looking => spec,
        status = machine.run(&args) => panic!("ended with {status:?}"),
    };
    let data = spec.mounts.iter().find(|it| it.target.ends_with("data"));
    let data = data.expect("mounted");
    assert!(data.read_only);
    assert_eq!(data.target, std::path::Path::new("/home/work/data"));
}

fn no_end() -> RunnerScript {
    backendai_agent::runtime::fake::no_runner()
}

#[tokio::test(start_paused = true)]
async fn what_a_killed_run_left_is_removed_by_the_next() {
    let machine = Machine::with(no_end());
    // A run that is cut off without any clean-up.
    let cut = std::time::Duration::from_secs(60);
    let killed = tokio::time::timeout(cut, machine.run(&code("out"))).await;
    assert!(killed.is_err());
    assert_eq!(machine.runtime.containers().len(), 1);
    let next = RunArgs {
        timeout: Some(1),
        ..code("out")
    };
    assert_eq!(machine.run(&next).await.expect("run"), 124);
    machine.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn runs_side_by_side_do_not_disturb_each_other() {
    let machine = Machine::new();
    let (long, short) = (code("sleep 5000\nout long"), code("out short"));
    let (first, second) = tokio::join!(machine.run(&long), machine.run(&short));
    assert_eq!((first.expect("run"), second.expect("run")), (0, 0));
    assert_eq!(machine.out.text(), "short\nlong\n");
    machine.assert_nothing_left();
}
