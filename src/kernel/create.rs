//! Making a kernel and its containers: a list of steps, each of which gives back what was taken when it fails
//! (19.03 agent, `_create_kernel`).

use tokio_util::sync::CancellationToken;

use super::live::{Container, Held, Live};
use super::mark;
use super::parts::Parts;
use super::plan::{self, PlanInput};
use super::ports::KernelPorts;
use super::scratch::Scratch;
use super::spec::KernelSpec;
use crate::agent::AgentError;
use crate::agent::event::Event;
use crate::agent::request::{KernelConfig, KernelId};
use crate::image::ImageRef;
use crate::resource::port::PortLease;
use crate::resource::spec::ResourceSpec;
use crate::runtime::{
    ContainerId, ContainerInfo, ContainerSpec, ImageInfo, LabelMap, PortBinding, RuntimeError,
};

/// The user of the runner where `LOCAL_USER_ID` does not say another (19.03 runner, `entrypoint.sh`).
const RUNNER_UID: u32 = 9001;

/// Why no kernel was made.
#[derive(Debug)]
pub enum NotCreated {
    /// A step failed.
    Failed(AgentError),
    /// It was destroyed before it was ready.
    Aborted,
}

impl<E: Into<AgentError>> From<E> for NotCreated {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// One kernel's making.
#[derive(Debug)]
pub struct Making<'a> {
    /// The node.
    pub parts: &'a Parts,
    /// The kernel.
    pub kernel: &'a KernelId,
    /// The request.
    pub config: &'a KernelConfig,
    /// Cancelled when the kernel is destroyed meanwhile.
    pub abort: &'a CancellationToken,
}

impl Making<'_> {
    /// Makes a new kernel. Nothing is left when it fails.
    ///
    /// # Errors
    /// [`NotCreated`].
    pub async fn kernel(&self) -> Result<(Held, Container), NotCreated> {
        let image = self.image().await?;
        let labels = self.labels(&image);
        let spec = KernelSpec::parse(&self.config.image, &labels)?;
        let vfolders = plan::vfolders(&self.parts.plan, &self.config.mounts)?;
        let allocation = self.parts.allocator.allocate(&self.config.slots)?;
        let effects = self.parts.allocator.effects(allocation.allocation());
        let environ = plan::environ(&self.parts.plan, self.config, &spec, &effects);
        let resource = ResourceSpec {
            container: None,
            mounts: vfolders,
            slots: self.config.slots.clone(),
            idle_timeout: self.config.idle_timeout,
            allocation: allocation.allocation().clone(),
            extra: effects.resource_lines.clone(),
        };
        let user = if spec.uid_match {
            self.parts.plan.kernel_uid
        } else {
            RUNNER_UID
        };
        let owner = self.parts.is_root.then_some(user);
        let folders = self.parts.scratch.create(self.kernel, owner).await?;
        mark::set(folders.scratch(), &self.parts.plan.agent_id);
        let mut held = Held {
            scratch: folders.scratch().clone(),
            allocation,
            resource,
            labels,
        };
        match self.first_container(&mut held, &image, &environ).await {
            Ok(container) => {
                drop(folders.keep());
                Ok((held, container))
            }
            Err(error) => {
                self.discard(folders.keep()).await;
                Err(error)
            }
        }
    }

    /// Makes a further container for a kernel that keeps the rest.
    ///
    /// # Errors
    /// [`NotCreated`]; the kernel has no container then.
    pub async fn again(&self, held: &mut Held) -> Result<Container, NotCreated> {
        let image = self.image().await?;
        if !self.config.labels.is_empty() {
            held.labels = self.config.labels.clone();
        }
        let spec = KernelSpec::parse(&self.config.image, &held.labels)?;
        let effects = self.parts.allocator.effects(held.allocation.allocation());
        let environ = plan::environ(&self.parts.plan, self.config, &spec, &effects);
        self.container(held, &image, &environ).await
    }

    async fn first_container(
        &self,
        held: &mut Held,
        image: &ImageInfo,
        environ: &[(String, String)],
    ) -> Result<Container, NotCreated> {
        held.scratch.write_environ(environ).await?;
        self.write_resource(held).await?;
        self.container(held, image, environ).await
    }

    async fn container(
        &self,
        held: &mut Held,
        image: &ImageInfo,
        environ: &[(String, String)],
    ) -> Result<Container, NotCreated> {
        let spec = KernelSpec::parse(&self.config.image, &held.labels)?;
        let mut lease = self.parts.ports.lease(spec.ports().len())?;
        let ports = KernelPorts::deal(&spec, lease.ports());
        let container = self.plan(held, image, &spec, environ, &ports);
        if self.parts.engine_listens {
            lease.release_sockets();
        }
        self.check_abort()?;
        // An id that was asked for serves until the engine has given its own.
        let mut id = container.id.clone();
        match self.start(held, &container, &mut id).await {
            Ok(info) => Ok(self.live(held, lease, ports, &info)),
            Err(error) => {
                self.undo(&id).await;
                Err(error)
            }
        }
    }

    fn live(
        &self,
        held: &Held,
        ports_held: PortLease,
        ports: KernelPorts,
        info: &ContainerInfo,
    ) -> Container {
        let scratch = held.scratch.clone();
        let live = Live::new(self.parts, self.kernel, info, scratch, ports);
        self.parts.emit(Event::KernelStarted(self.kernel.clone()));
        Container {
            live,
            ports: ports_held,
        }
    }

    fn plan(
        &self,
        held: &Held,
        image: &ImageInfo,
        spec: &KernelSpec,
        environ: &[(String, String)],
        ports: &KernelPorts,
    ) -> ContainerSpec {
        let effects = self.parts.allocator.effects(held.allocation.allocation());
        let config = KernelConfig {
            labels: held.labels.clone(),
            ..self.config.clone()
        };
        let input = PlanInput {
            kernel: self.kernel,
            config: &config,
            spec,
            effects: &effects,
            scratch: &held.scratch,
            vfolders: &held.resource.mounts,
            environ,
            ports,
        };
        let attempt = uuid::Uuid::new_v4().simple().to_string();
        let mut container = plan::container(&self.parts.plan, &input, &attempt);
        if !is_named(image, &container.image) {
            // The same image is here under another name.
            container.image.clone_from(&image.id);
        }
        container
    }

    /// Creates and starts the container; what it leaves on failure is for [`Making::undo`].
    async fn start(
        &self,
        held: &mut Held,
        container: &ContainerSpec,
        id: &mut ContainerId,
    ) -> Result<ContainerInfo, NotCreated> {
        // Creating and starting are never dropped half-way: the engine undoes or ends them.
        *id = self.parts.runtime.create(container).await?;
        let id = &*id;
        held.resource.container = Some(id.0.clone());
        self.write_resource(held).await?;
        self.check_abort()?;
        self.parts.runtime.start(id).await?;
        self.check_abort()?;
        let inspected = self.parts.runtime.inspect(id);
        let info = self.parts.within(inspected, "inspection").await?;
        if !same_ports(&info.ports, &container.ports) {
            let problem = format!("forwards {:?}, not {:?}", info.ports, container.ports);
            return Err(NotCreated::Failed(
                RuntimeError::Invalid(format!("container {id} {problem}")).into(),
            ));
        }
        Ok(info)
    }

    async fn write_resource(&self, held: &Held) -> Result<(), AgentError> {
        let text = held.resource.to_text(&self.parts.allocator);
        held.scratch.write_resource(text).await
    }

    /// Finds the image by digest or pulls it; tells the manager how far it is.
    async fn image(&self) -> Result<ImageInfo, NotCreated> {
        let (parts, config) = (self.parts, self.config);
        parts.emit(Event::KernelPreparing(self.kernel.clone()));
        let key = if config.digest.is_empty() {
            &config.image
        } else {
            &config.digest
        };
        let image = match parts
            .within(parts.images.inspect(key), "image look-up")
            .await
        {
            Ok(image) => image,
            Err(RuntimeError::ImageMissing(_)) => self.pull().await?,
            Err(error) => return Err(error.into()),
        };
        self.check_abort()?;
        parts.emit(Event::KernelCreating(self.kernel.clone()));
        Ok(image)
    }

    async fn pull(&self) -> Result<ImageInfo, NotCreated> {
        let config = self.config;
        let event = Event::KernelPulling(self.kernel.clone(), config.image.clone());
        self.parts.emit(event);
        let name = match &config.repo_digest {
            Some(digest) => format!("{}@{digest}", config.image),
            None => config.image.clone(),
        };
        let pull = self.parts.images.pull(&name, config.auth.as_ref());
        match self.abort.run_until_cancelled(pull).await {
            Some(pulled) => Ok(pulled?),
            None => Err(NotCreated::Aborted),
        }
    }

    /// The manager's labels, or the image's own where the manager gave none.
    fn labels(&self, image: &ImageInfo) -> LabelMap {
        let given = &self.config.labels;
        if given.is_empty() {
            &image.labels
        } else {
            given
        }
        .clone()
    }

    fn check_abort(&self) -> Result<(), NotCreated> {
        if self.abort.is_cancelled() {
            return Err(NotCreated::Aborted);
        }
        Ok(())
    }

    /// Removes a container that did not come to life; also when creating failed, because the engine may have been
    /// cut off in the middle of it.
    async fn undo(&self, container: &ContainerId) {
        let removed = self.parts.runtime.remove(container);
        if let Err(error) = self.parts.within(removed, "removal").await {
            tracing::warn!(kernel = %self.kernel, %container, "cannot undo the creation: {error}");
        }
    }

    async fn discard(&self, scratch: Scratch) {
        if let Err(error) = scratch.remove().await {
            tracing::warn!(kernel = %self.kernel, "cannot undo the creation: {error}");
        }
    }
}

/// Whether an image has a name, in whichever form the engine writes it.
fn is_named(image: &ImageInfo, name: &str) -> bool {
    let Ok(wanted) = ImageRef::parse(name) else {
        return false;
    };
    let same = |known: &String| ImageRef::parse(known).is_ok_and(|it| it.same_image(&wanted));
    image.names.iter().any(same)
}

/// Whether the same ports are forwarded; engines tell them in an order of their own.
fn same_ports(told: &[PortBinding], asked: &[PortBinding]) -> bool {
    told.len() == asked.len() && asked.iter().all(|port| told.contains(port))
}
