//! The end of kernels, restarts, idleness, and the agent's own end and return.

use std::time::Duration;

use backendai_agent::agent::AgentError;
use backendai_agent::agent::request::ExecuteMode;
use backendai_agent::agent::request::{Created, KernelConfig, Reply, Request, RunStatus};
use backendai_agent::manager::Node;
use backendai_agent::runtime::ContainerRuntime;
use backendai_agent::runtime::fake::{Failure, Verb};

use crate::node::{TestNode, config, id, result, stdout};

/// A request for all that the node has.
fn everything() -> KernelConfig {
    KernelConfig {
        slots: crate::node::slots("4", "1048576"),
        ..config()
    }
}

async fn restart(node: &TestNode, kernel: &str) -> Result<Created, AgentError> {
    let request = Request::RestartKernel {
        kernel: id(kernel),
        config: Box::new(KernelConfig {
            slots: Default::default(),
            ..config()
        }),
    };
    match node.handle(request).await? {
        Reply::Created(created) => Ok(*created),
        other => panic!("a restart is answered by {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn destroying_an_unknown_kernel_is_reported_and_cleans_its_folder() {
    let mut node = TestNode::new().await;
    std::fs::create_dir_all(node.scratch("k9").join("config")).expect("made");
    let reply = node.destroy("k9").await;
    assert!(matches!(reply, Ok(Reply::Destroyed(None))), "{reply:?}");
    assert_eq!(node.events(), ["terminated k9 self-terminated"]);
    node.assert_nothing_held();
}

#[tokio::test(start_paused = true)]
async fn a_kernel_destroyed_twice_at_once_is_reported_once() {
    let mut node = TestNode::new().await;
    node.create("k1").await;
    let (first, second) = tokio::join!(node.destroy("k1"), node.destroy("k1"));
    assert!(first.is_ok() && second.is_ok());
    let ends = node.events();
    let ends = ends.iter().filter(|event| event.starts_with("terminated"));
    assert_eq!(ends.count(), 1);
    node.assert_nothing_held();
}

#[tokio::test(start_paused = true)]
async fn a_kernel_that_dies_by_itself_is_cleaned_up_and_reported_once() {
    let mut node = TestNode::new().await;
    let created = node.create("k1").await;
    node.events();
    node.runtime.exit(&node.container(&created), 137);
    assert_eq!(node.next_event().await, "terminated k1 self-terminated");
    node.assert_nothing_held();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(node.events(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_container_that_nobody_told_of_is_missed_and_its_kernel_reported_once() {
    for dead in [false, true] {
        let mut node = TestNode::new().await;
        node.runtime.fail_next(Verb::Wait, Failure::Hang);
        let created = node.create("k1").await;
        node.create("k2").await;
        node.events();
        let container = node.container(&created);
        if dead {
            node.runtime.exit(&container, 1);
        } else {
            node.runtime.remove(&container).await.expect("removed");
        }
        assert_eq!(node.next_event().await, "terminated k1 self-terminated");
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(node.events(), [""; 0]);
        assert_eq!(node.agent.parts().registry.ids(), [id("k2")]);
        node.destroy("k2").await.expect("destroyed");
        node.assert_nothing_held();
    }
}

#[tokio::test(start_paused = true)]
async fn a_program_that_ends_its_container_ends_its_run() {
    let mut node = TestNode::new().await;
    node.create("k1").await;
    node.events();
    let run = ExecuteMode::Query("die 1\nsleep 1000".to_owned());
    let reply = node.try_execute("k1", "r1", run, None).await;
    assert!(matches!(reply, Ok(Reply::Cancelled)), "{reply:?}");
    assert_eq!(node.next_event().await, "terminated k1 self-terminated");
    node.assert_nothing_held();
}

#[tokio::test(start_paused = true)]
async fn a_destruction_survives_an_engine_that_fails_for_a_while() {
    for verb in [Verb::Kill, Verb::Remove, Verb::Wait] {
        for failure in [Failure::Engine, Failure::Unavailable, Failure::Hang] {
            let node = TestNode::new().await;
            node.create("k1").await;
            node.runtime.fail_next(verb, failure);
            let reply = node.destroy("k1").await;
            assert!(reply.is_ok(), "{verb:?} {failure:?}: {reply:?}");
            node.assert_nothing_held();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_container_that_could_not_be_removed_is_removed_by_reconciliation() {
    let mut node = TestNode::new().await;
    node.create("k1").await;
    node.events();
    for _ in 0..3 {
        node.runtime.fail_next(Verb::Remove, Failure::Engine);
    }
    node.destroy("k1").await.expect("destroyed");
    assert_eq!(node.runtime.containers().len(), 1);
    tokio::time::sleep(Duration::from_secs(20)).await;
    node.assert_nothing_held();
    assert_eq!(node.events(), ["terminated k1 user-requested"]);
}

#[tokio::test(start_paused = true)]
async fn a_kernel_holds_what_it_has_until_its_engine_says_that_it_is_gone() {
    for failure in [Failure::Unavailable, Failure::Hang] {
        let mut node = TestNode::new().await;
        node.create("k1").await;
        node.events();
        for _ in 0..9 {
            node.runtime.fail_next(Verb::Remove, failure);
        }
        for _ in 0..2 {
            let error = node.destroy("k1").await.expect_err("the engine is away");
            assert!(error.to_string().contains("unreachable"), "{error}");
            let full = node.try_create("k2", everything()).await;
            assert!(full.is_err(), "its amounts are given back too early");
        }
        assert_eq!(node.events(), ["preparing k2", "creating k2"].repeat(2));
        assert_eq!(node.next_event().await, "terminated k1 user-requested");
        node.assert_nothing_held();
    }
}

#[tokio::test(start_paused = true)]
async fn the_files_of_a_dead_kernel_do_not_wait_for_its_container_and_those_of_a_living_one_do() {
    for lives in [false, true] {
        let node = TestNode::new().await;
        node.create("k1").await;
        if lives {
            node.runtime.fail_next(Verb::Kill, Failure::Unavailable);
        }
        node.runtime.fail_next(Verb::Remove, Failure::Hang);
        let meanwhile = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let scratch = node.scratch("k1");
            (
                scratch.join("work").exists(),
                scratch.join("config").exists(),
            )
        };
        let (destroyed, there) = tokio::join!(node.destroy("k1"), meanwhile);
        destroyed.expect("destroyed");
        // By its configuration another agent would know whose the container is.
        assert_eq!(there, (lives, true));
        node.assert_nothing_held();
    }
}

#[tokio::test(start_paused = true)]
async fn a_kernel_that_could_not_be_ended_is_found_by_the_next_agent() {
    let mut node = TestNode::new().await;
    node.create("k1").await;
    node.runtime.fail_next(Verb::Kill, Failure::Unavailable);
    for _ in 0..3 {
        node.runtime.fail_next(Verb::Remove, Failure::Unavailable);
    }
    node.destroy("k1").await.expect_err("the engine is away");
    node.restart_agent().await;
    assert_eq!(node.agent.parts().registry.ids(), [id("k1")]);
    node.destroy("k1").await.expect("destroyed");
    node.assert_nothing_held();
}

#[tokio::test(start_paused = true)]
async fn a_restart_whose_engine_is_away_fails_and_makes_no_second_container() {
    let mut node = TestNode::new().await;
    node.create("k1").await;
    node.events();
    for _ in 0..4 {
        node.runtime.fail_next(Verb::Remove, Failure::Unavailable);
    }
    let error = restart(&node, "k1").await.expect_err("the engine is away");
    assert!(error.to_string().contains("unreachable"), "{error}");
    assert!(node.runtime.containers().len() < 2);
    assert_eq!(node.next_event().await, "terminated k1 restarting");
    node.assert_nothing_held();
}

#[tokio::test(start_paused = true)]
async fn a_restart_keeps_folder_and_amounts_and_takes_new_ports() {
    let mut node = TestNode::new().await;
    let before = node.create("k1").await;
    let file = node.scratch("k1").join("work/data");
    std::fs::write(&file, "kept").expect("written");
    let after = restart(&node, "k1").await.expect("restarted");
    assert_ne!(after.container, before.container);
    assert_ne!(after.repl_in_port, before.repl_in_port);
    assert_eq!(std::fs::read_to_string(&file).expect("still there"), "kept");
    assert_eq!(node.runtime.containers().len(), 1);
    assert_eq!(stdout(&node.query("k1", "r1", "out on").await), "on\n");
    node.destroy("k1").await.expect("destroyed");
    node.assert_nothing_held();
    let ends = node.events();
    let ends = ends.iter().filter(|event| event.starts_with("terminated"));
    assert_eq!(ends.count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_run_waits_while_its_kernel_is_restarted_and_an_older_one_is_cancelled() {
    let node = TestNode::new().await;
    node.create("k1").await;
    let hang = ExecuteMode::Query("hang".to_owned());
    let old = node.try_execute("k1", "r1", hang, None);
    let new = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        tokio::join!(restart(&node, "k1"), node.query("k1", "r2", "out new"))
    };
    let (old, (restarted, new)) = tokio::join!(old, new);
    assert!(matches!(old, Ok(Reply::Cancelled)), "{old:?}");
    assert!(restarted.is_ok());
    assert_eq!(stdout(&new), "new\n");
}

#[tokio::test(start_paused = true)]
async fn a_failed_restart_ends_the_kernel_and_later_calls_do_not_hang() {
    let mut node = TestNode::new().await;
    node.create("k1").await;
    node.events();
    node.runtime.fail_next(Verb::Start, Failure::Engine);
    let error = restart(&node, "k1").await;
    assert!(matches!(error, Err(AgentError::Runtime(_))), "{error:?}");
    node.assert_nothing_held();
    let ended = node.events().pop();
    assert_eq!(ended.as_deref(), Some("terminated k1 restarting"));
    let run = ExecuteMode::Continue;
    let error = node.try_execute("k1", "r1", run, None).await;
    assert!(matches!(error, Err(AgentError::UnknownKernel(_))));
}

#[tokio::test(start_paused = true)]
async fn restarting_an_unknown_kernel_is_an_error() {
    let node = TestNode::new().await;
    let error = restart(&node, "k9").await;
    assert!(matches!(error, Err(AgentError::NoScratch(_))), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn an_idle_kernel_is_ended_and_use_keeps_it() {
    let mut node = TestNode::new().await;
    let idle = KernelConfig {
        idle_timeout: 60,
        ..config()
    };
    node.try_create("k1", idle).await.expect("created");
    node.create("k2").await;
    node.events();
    tokio::time::sleep(Duration::from_secs(50)).await;
    let refresh = Request::RefreshIdle { kernel: id("k1") };
    node.handle(refresh).await.expect("refreshed");
    tokio::time::sleep(Duration::from_secs(50)).await;
    assert_eq!(node.events(), [""; 0]);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(node.events(), ["terminated k1 idle-timeout"]);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(node.events(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn kernels_live_on_over_the_agents_restart_with_ports_amounts_services_and_idle_time() {
    let mut node = TestNode::new().await;
    let idle = KernelConfig {
        idle_timeout: 600,
        ..config()
    };
    let before = node.try_create("k1", idle).await.expect("created");
    node.restart_agent().await;
    assert_eq!(node.events(), [""; 0]);
    let parts = node.agent.parts().clone();
    let live = parts.registry.get(&id("k1")).and_then(|it| it.running());
    let live = live.expect("taken back");
    assert_eq!(live.ports.repl_in, before.repl_in_port);
    assert_eq!(live.ports.services, before.services);
    let lease = parts.ports.lease(1).expect("ports are free");
    assert!(
        !live
            .ports
            .bindings
            .iter()
            .any(|it| it.host == lease.ports()[0])
    );
    let rest = parts.allocator.allocate(&crate::node::slots("4", "0"));
    assert!(rest.is_err(), "one share of a core is the kernel's");
    drop((lease, rest));
    assert_eq!(stdout(&node.query("k1", "r1", "out on").await), "on\n");
    tokio::time::sleep(Duration::from_secs(611)).await;
    assert_eq!(node.events(), ["terminated k1 idle-timeout"]);
    node.assert_nothing_held();
}

#[tokio::test(start_paused = true)]
async fn a_kernel_can_be_restarted_after_the_agents_restart() {
    let mut node = TestNode::new().await;
    node.create("k1").await;
    node.restart_agent().await;
    restart(&node, "k1").await.expect("restarted");
    assert_eq!(stdout(&node.query("k1", "r1", "out on").await), "on\n");
    node.destroy("k1").await.expect("destroyed");
    node.assert_nothing_held();
}

#[tokio::test(start_paused = true)]
async fn a_run_goes_on_over_the_agents_restart_and_its_output_is_kept() {
    let mut node = TestNode::new().await;
    node.create("k1").await;
    let run = ExecuteMode::Query("out a\nsleep 5000\nout b\nexit 4".to_owned());
    let flush = Some(Duration::from_secs(1));
    let first = node.try_execute("k1", "r1", run, flush).await;
    assert_eq!(stdout(&result(first.expect("executed"))), "a\n");
    node.restart_agent().await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    let last = node.execute("k1", "r1", ExecuteMode::Continue).await;
    assert_eq!(stdout(&last), "b\n");
    assert_eq!(
        (last.status, last.exit_code),
        (RunStatus::Finished, Some(4))
    );
}

#[tokio::test(start_paused = true)]
async fn a_kernel_that_ended_while_no_agent_was_there_is_reported_and_cleaned_up() {
    let mut node = TestNode::new().await;
    let created = node.create("k1").await;
    node.agent.shutdown(false).await;
    node.runtime.exit(&node.container(&created), 1);
    node.start_agent().await;
    assert_eq!(node.events(), ["terminated k1 self-terminated"]);
    node.assert_nothing_held();
}

#[tokio::test(start_paused = true)]
async fn a_kernel_whose_container_vanished_is_reported_and_cleaned_up() {
    use backendai_agent::runtime::ContainerRuntime;
    let mut node = TestNode::new().await;
    let created = node.create("k1").await;
    node.agent.shutdown(false).await;
    let removed = node.runtime.remove(&node.container(&created)).await;
    removed.expect("removed");
    // A folder of somebody else stays.
    let foreign = node.scratch("foreign").join("config");
    std::fs::create_dir_all(&foreign).expect("made");
    node.start_agent().await;
    assert_eq!(node.events(), ["terminated k1 self-terminated"]);
    assert!(foreign.is_dir());
    std::fs::remove_dir_all(node.scratch("foreign")).expect("removed");
    node.assert_nothing_held();
}

#[tokio::test(start_paused = true)]
async fn shutting_down_with_destruction_ends_every_kernel() {
    let mut node = TestNode::new().await;
    let dead = node.create("k1").await;
    node.create("k2").await;
    node.events();
    node.runtime.exit(&node.container(&dead), 0);
    node.agent.shutdown(true).await;
    let mut ends = node.events();
    ends.sort();
    assert_eq!(ends.len(), 2, "{ends:?}");
    assert_eq!(ends[1], "terminated k2 agent-termination");
    node.assert_nothing_held();
}

#[tokio::test(start_paused = true)]
async fn a_reset_ends_every_kernel_and_new_ones_can_be_created() {
    let node = TestNode::new().await;
    node.create("k1").await;
    node.create("k2").await;
    let reset = Request::DestroyAll {
        reason: "agent-reset".to_owned(),
    };
    node.handle(reset).await.expect("destroyed");
    node.assert_nothing_held();
    node.create("k1").await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_shuts_down_takes_no_new_kernels() {
    let node = TestNode::new().await;
    node.agent.shutdown(true).await;
    let error = node.try_create("k1", config()).await;
    assert!(matches!(error, Err(AgentError::Runtime(_))), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn the_node_tells_its_slots_and_kernel_images() {
    let node = TestNode::new().await;
    let state = node.agent.state();
    assert_eq!(state.slots["cpu"].1, "4");
    assert_eq!(state.slots["mem"].1, "1073741824");
    let image = (
        crate::node::IMAGE.to_owned(),
        crate::node::DIGEST.to_owned(),
    );
    assert_eq!(state.images, [image]);
}

#[tokio::test(start_paused = true)]
async fn logs_are_text_without_their_invalid_bytes() {
    let node = TestNode::new().await;
    let created = node.create("k1").await;
    node.runtime.log(&node.container(&created), b"a\xffb\n");
    let reply = node.handle(Request::GetLogs { kernel: id("k1") }).await;
    let Ok(Reply::Logs(text)) = reply else {
        panic!("{reply:?}");
    };
    assert_eq!(text, "ab\n");
}

#[tokio::test(start_paused = true)]
async fn a_kernels_use_is_sampled_each_second_and_its_last_sample_is_the_answer_to_its_destruction()
{
    let node = TestNode::new().await;
    let created = node.create("k1").await;
    node.uses(&created, 1_000_000, 4096);
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let stats = node.agent.stats();
    assert_eq!(stats.mem_cur_bytes, 4096);
    assert_eq!(stats.kernels.len(), 1);
    assert!((stats.kernels[0].1.cpu_used - 1000.0).abs() < 1e-6);
    node.uses(&created, 3_000_000, 1024);
    let reply = node.destroy("k1").await;
    let Ok(Reply::Destroyed(Some(last))) = reply else {
        panic!("{reply:?}");
    };
    assert!((last.cpu_used - 3000.0).abs() < 1e-6);
    assert_eq!(last.mem_max_bytes, 4096);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(node.agent.stats().kernels, []);
}
