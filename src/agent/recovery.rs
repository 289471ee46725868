//! Kernels that outlived the agent, found by the engine's list and their scratch folders. What ended meanwhile is
//! cleaned up and reported. The same comparison runs again and again as reconciliation.

use std::sync::Arc;

use super::AgentError;
use super::event::Event;
use super::request::KernelId;
use crate::kernel::KernelHandle;
use crate::kernel::live::{Container, Held, Live};
use crate::kernel::mark;
use crate::kernel::parts::Parts;
use crate::kernel::ports::KernelPorts;
use crate::kernel::scratch::Scratch;
use crate::kernel::spec::KernelSpec;
use crate::resource::spec::ResourceSpec;
use crate::runtime::{
    ContainerId, ContainerInfo, ContainerState, LABEL_AGENT_ID, LABEL_KERNEL_ID, RuntimeError,
};

/// Takes back every kernel whose container runs, and reports those that ended while no agent was there.
///
/// # Errors
/// When the engine does not answer.
pub async fn recover(parts: &Arc<Parts>) -> Result<(), AgentError> {
    reconcile(parts).await?;
    for kernel in parts.scratch.kernels()? {
        let Some(scratch) = parts.scratch.open(&kernel) else {
            continue;
        };
        if parts.registry.get(&kernel).is_none() && mark::is_ours(&scratch, &parts.plan.agent_id) {
            // Its container is gone without a trace, for instance by a reboot.
            end(parts, &kernel).await;
        }
    }
    Ok(())
}

/// Compares the engine's containers with the kernels: unknown ones are taken back when they can be used, else removed;
/// kernels whose container is gone are told, in case that nothing else told them.
///
/// # Errors
/// When the engine does not answer.
pub async fn reconcile(parts: &Arc<Parts>) -> Result<(), AgentError> {
    // Before the list is made: a container that comes later is not expected in it.
    let believed = running(parts);
    let listed = parts.within(parts.runtime.list(), "container list").await?;
    for (kernel, container) in believed {
        if !lives(parts, &listed, &container).await {
            kernel.container_gone(container).await;
        }
    }
    for info in listed {
        let Some(kernel) = kernel_of(parts, &info) else {
            continue;
        };
        if parts.registry.get(&kernel).is_some() {
            continue;
        }
        // A kernel is in the registry from before its container is made until after it is removed. So this one is
        // nobody's, unless it is gone since the list was made.
        let inspected = parts.runtime.inspect(&info.id);
        let Ok(info) = parts.within(inspected, "inspection").await else {
            continue;
        };
        take_back_or_end(parts, &kernel, info).await;
    }
    Ok(())
}

/// The kernels that have a container at this moment.
fn running(parts: &Parts) -> Vec<(KernelHandle, ContainerId)> {
    let all = parts.registry.all().into_iter();
    all.filter_map(|kernel| {
        let container = kernel.running()?.container.clone();
        Some((kernel, container))
    })
    .collect()
}

/// Whether a container is listed alive. One that is not listed is looked at once more: only an engine that does not
/// know it any more has lost it.
async fn lives(parts: &Parts, listed: &[ContainerInfo], container: &ContainerId) -> bool {
    match listed.iter().find(|info| info.id == *container) {
        Some(info) => info.state != ContainerState::Stopped,
        None => {
            let inspected = parts.runtime.inspect(container);
            let inspected = parts.within(inspected, "inspection").await;
            !matches!(inspected, Err(RuntimeError::NotFound(_)))
        }
    }
}

/// Removes what is left of a kernel that the agent does not know: containers and folders.
pub async fn discard(parts: &Arc<Parts>, kernel: &KernelId) {
    let listed = parts.within(parts.runtime.list(), "container list").await;
    for info in listed.unwrap_or_default() {
        if kernel_of(parts, &info).as_ref() == Some(kernel) {
            remove_container(parts, &info).await;
        }
    }
    if let Some(scratch) = parts.scratch.open(kernel)
        && let Err(error) = scratch.remove().await
    {
        tracing::error!(%kernel, "{error}");
    }
}

/// The kernel that a container of this agent belongs to.
fn kernel_of(parts: &Parts, info: &ContainerInfo) -> Option<KernelId> {
    let ours = info.labels.get(LABEL_AGENT_ID) == Some(&parts.plan.agent_id);
    let kernel = info.labels.get(LABEL_KERNEL_ID).filter(|_| ours)?;
    KernelId::parse(kernel).ok()
}

async fn take_back_or_end(parts: &Arc<Parts>, kernel: &KernelId, info: ContainerInfo) {
    let scratch = parts.scratch.open(kernel);
    if info.state == ContainerState::Running
        && let Some(scratch) = &scratch
    {
        match take_back(parts, kernel, &info, scratch.clone()).await {
            Ok(()) => return,
            Err(error) => tracing::error!(%kernel, "cannot be taken back: {error}"),
        }
    }
    if parts.keep_containers && scratch.is_none() {
        return;
    }
    remove_container(parts, &info).await;
    if scratch.is_some() {
        end(parts, kernel).await;
    }
}

async fn take_back(
    parts: &Arc<Parts>,
    kernel: &KernelId,
    info: &ContainerInfo,
    scratch: Scratch,
) -> Result<(), AgentError> {
    let text = scratch.read_resource().await?;
    let invalid = |problem: String| AgentError::Value(vec!["resource.txt".to_owned(), problem]);
    let resource =
        ResourceSpec::parse(&text, &parts.allocator).map_err(|error| invalid(error.to_string()))?;
    if resource.container.as_deref() != Some(info.id.0.as_str()) {
        return Err(invalid("names another container".to_owned()));
    }
    // One of another program in our place is not marked yet.
    mark::set(&scratch, &parts.plan.agent_id);
    let spec = KernelSpec::parse(&info.image, &info.labels)?;
    let ports = KernelPorts::new(&spec, info.ports.clone());
    let host_ports: Vec<u16> = info.ports.iter().map(|port| port.host).collect();
    let mut lease = parts.ports.adopt(&host_ports);
    if parts.engine_listens {
        lease.release_sockets();
    }
    let held = Held {
        scratch: scratch.clone(),
        allocation: parts.allocator.adopt(resource.allocation.clone()),
        resource,
        labels: info.labels.clone(),
    };
    let live = Live::new(parts, kernel, info, scratch, ports);
    let container = Container { live, ports: lease };
    KernelHandle::adopt(parts, kernel.clone(), held, container)
}

async fn remove_container(parts: &Parts, info: &ContainerInfo) {
    let removed = parts.runtime.remove(&info.id);
    if let Err(error) = parts.within(removed, "removal").await {
        tracing::warn!(container = %info.id, "{error}");
    }
}

/// Cleans up after a kernel that has ended, and reports it.
async fn end(parts: &Parts, kernel: &KernelId) {
    if let Some(scratch) = parts.scratch.open(kernel)
        && let Err(error) = scratch.remove().await
    {
        tracing::error!(%kernel, "{error}");
    }
    parts.emit(Event::KernelTerminated {
        kernel: kernel.clone(),
        reason: "self-terminated".to_owned(),
        stats: None,
    });
}
