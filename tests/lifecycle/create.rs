//! Creation: order of events, what is answered, and that a failed one leaves nothing.

use backendai_agent::agent::AgentError;
use backendai_agent::agent::request::{KernelConfig, Reply, Request, VfolderMount};
use backendai_agent::runtime::fake::{Failure, Verb};

use crate::node::{IMAGE, REMOTE, TestNode, config, id, slots};

#[tokio::test(start_paused = true)]
async fn a_creation_is_told_in_order_and_answered_with_its_ports() {
    let mut node = TestNode::new().await;
    let created = node.create("k1").await;
    assert_eq!(node.events(), ["preparing k1", "creating k1", "started k1"]);
    let spec = node.runtime.spec(&node.container(&created));
    let ports = spec.expect("the container is there").ports;
    let host = |inside: u16| {
        ports
            .iter()
            .find(|it| it.container == inside)
            .map(|it| it.host)
    };
    assert_eq!(Some(created.repl_in_port), host(2000));
    assert_eq!(Some(created.repl_out_port), host(2001));
    assert_eq!((created.stdin_port, created.stdout_port), (0, 0));
    assert_eq!(created.services.len(), 2);
    assert_eq!(Some(created.services[0].host_port), host(8080));
    assert_eq!(created.host, "10.0.0.1");
    node.destroy("k1").await.expect("destroyed");
    assert_eq!(node.events(), ["terminated k1 user-requested"]);
    node.assert_nothing_held();
}

#[tokio::test(start_paused = true)]
async fn a_missing_image_is_pulled_and_the_manager_is_told() {
    let mut node = TestNode::new().await;
    let remote = KernelConfig {
        image: REMOTE.to_owned(),
        digest: "sha256:4567".to_owned(),
        ..config()
    };
    node.try_create("k1", remote).await.expect("pulled");
    let pulling = format!("pulling k1 {REMOTE}");
    assert_eq!(
        node.events(),
        ["preparing k1", &pulling, "creating k1", "started k1"]
    );
}

#[tokio::test(start_paused = true)]
async fn the_files_of_a_kernel_are_those_of_the_original() {
    let node = TestNode::new().await;
    let with_environ = KernelConfig {
        environ: vec![("A".to_owned(), "1".to_owned())],
        idle_timeout: 60,
        ..config()
    };
    let created = node.try_create("k1", with_environ).await.expect("created");
    let file = |name: &str| {
        std::fs::read_to_string(node.scratch("k1").join("config").join(name)).expect("written")
    };
    assert_eq!(file("environ.txt"), "A=1\nOPENBLAS_NUM_THREADS=1\n");
    let expected = format!(
        "CID={}\nSCRATCH_SIZE=0m\nMOUNTS=\nSLOTS={{\"cpu\": \"1\", \"mem\": \"1048576\"}}\n\
         IDLE_TIMEOUT=60\nCPU_SHARES=0:1\nMEM_SHARES=root:1m\n",
        created.container
    );
    assert_eq!(file("resource.txt"), expected);
}

#[tokio::test(start_paused = true)]
async fn a_creation_that_fails_at_any_step_leaves_nothing() {
    for (verb, failure) in [
        (Verb::ImageInspect, Failure::Engine),
        (Verb::ImageInspect, Failure::Hang),
        (Verb::Create, Failure::Engine),
        (Verb::Create, Failure::Unavailable),
        (Verb::Start, Failure::Engine),
        (Verb::Start, Failure::Unavailable),
        (Verb::Inspect, Failure::Engine),
        (Verb::Inspect, Failure::Hang),
    ] {
        let node = TestNode::new().await;
        node.runtime.fail_next(verb, failure);
        let error = node.try_create("k1", config()).await;
        assert!(
            matches!(error, Err(AgentError::Runtime(_))),
            "{verb:?}: {error:?}"
        );
        node.assert_nothing_held();
        node.create("k1").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_of_the_scratch_folder_that_cannot_be_written_leaves_nothing() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root to mount tmpfs");
        return;
    }
    // More than the folder has room for.
    let much = "x".repeat(70 << 20);
    let environ = KernelConfig {
        environ: vec![("MUCH".to_owned(), much.clone())],
        ..config()
    };
    let mount = VfolderMount {
        name: much,
        host: "local".to_owned(),
        id: "0".repeat(32),
        read_only: true,
    };
    let resource = KernelConfig {
        mounts: vec![mount],
        ..config()
    };
    for (file, config) in [("environ.txt", environ), ("resource.txt", resource)] {
        let node = TestNode::in_memory().await;
        let error = node.try_create("k1", config).await;
        let named = matches!(&error, Err(AgentError::Host { action, .. }) if action.contains(file));
        assert!(named, "{file}: {:?}", error.map(|_| ()));
        node.assert_nothing_held();
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_pull_leaves_nothing() {
    let mut node = TestNode::new().await;
    let unknown = KernelConfig {
        image: "example.org/lab/unknown:1".to_owned(),
        digest: "sha256:none".to_owned(),
        ..config()
    };
    let error = node.try_create("k1", unknown).await;
    assert!(matches!(error, Err(AgentError::Runtime(_))), "{error:?}");
    assert_eq!(
        node.events(),
        ["preparing k1", "pulling k1 example.org/lab/unknown:1"]
    );
    node.assert_nothing_held();
}

#[tokio::test(start_paused = true)]
async fn a_request_that_cannot_be_met_leaves_nothing() {
    let bad_label = |value: &str| {
        let mut config = config();
        let name = "ai.backend.service-ports".to_owned();
        config.labels.insert(name, value.to_owned());
        config
    };
    let too_large = KernelConfig {
        slots: slots("5", "0"),
        ..config()
    };
    let no_memory = KernelConfig {
        slots: slots("1", "2000000000"),
        ..config()
    };
    let many_ports: Vec<String> = (0..1200)
        .map(|n| format!("s{n}:tcp:{}", 3000 + n))
        .collect();
    let node = TestNode::new().await;
    for config in [
        bad_label("jupyter:http"),
        bad_label("jupyter:udp:8080"),
        bad_label("jupyter:http:80"),
        bad_label(&many_ports.join(",")),
        too_large,
        no_memory,
    ] {
        let error = node.try_create("k1", config).await;
        assert!(error.is_err(), "{error:?}");
        node.assert_nothing_held();
    }
}

#[tokio::test(start_paused = true)]
async fn a_scratch_folder_that_cannot_be_made_leaves_nothing_else() {
    let node = TestNode::new().await;
    let folder = node.scratch("k1");
    std::fs::write(&folder, "in the way").expect("written");
    let error = node.try_create("k1", config()).await;
    assert!(matches!(error, Err(AgentError::Host { .. })), "{error:?}");
    std::fs::remove_file(&folder).expect("still there");
    node.assert_nothing_held();
}

#[tokio::test(start_paused = true)]
async fn a_second_kernel_of_the_same_id_is_refused_and_harms_the_first_in_nothing() {
    let node = TestNode::new().await;
    node.create("k1").await;
    let error = node.try_create("k1", config()).await;
    assert!(matches!(error, Err(AgentError::Exists(_))), "{error:?}");
    assert_eq!(node.query("k1", "r", "out hi").await.exit_code, Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_kernel_destroyed_while_its_image_is_pulled_is_not_created() {
    let mut node = TestNode::new().await;
    node.runtime.fail_next(Verb::Pull, Failure::Hang);
    let remote = KernelConfig {
        image: REMOTE.to_owned(),
        digest: "sha256:4567".to_owned(),
        ..config()
    };
    let request = Request::CreateKernel {
        kernel: id("k1"),
        config: Box::new(remote),
    };
    let (created, destroyed) = tokio::join!(node.handle(request), async {
        tokio::time::sleep(std::time::Duration::from_secs(5)).await;
        node.destroy("k1").await
    });
    assert!(matches!(created, Ok(Reply::Cancelled)), "{created:?}");
    assert!(matches!(destroyed, Ok(Reply::Destroyed(None))));
    node.assert_nothing_held();
    assert!(!node.events().contains(&"started k1".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn kernels_are_created_side_by_side() {
    let node = TestNode::new().await;
    let kernels = tokio::join!(node.create("k1"), node.create("k2"), node.create("k3"));
    let mut ports = vec![
        kernels.0.repl_in_port,
        kernels.1.repl_in_port,
        kernels.2.repl_in_port,
    ];
    ports.dedup();
    assert_eq!(ports.len(), 3);
    assert_eq!(node.runtime.containers().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn an_image_known_by_its_digest_alone_is_not_pulled() {
    let mut node = TestNode::new().await;
    let renamed = KernelConfig {
        image: "mirror.example.org/lab/python:3".to_owned(),
        ..config()
    };
    let created = node
        .try_create("k1", renamed)
        .await
        .expect("found by digest");
    let spec = node.runtime.spec(&node.container(&created));
    assert_ne!(spec.expect("made").image, IMAGE);
    assert!(
        !node
            .events()
            .iter()
            .any(|event| event.starts_with("pulling"))
    );
}
