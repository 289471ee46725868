//! One arm for each call of the manager (19.03 agent, `server.py`, the RPC methods).

use std::sync::Arc;

use futures_util::future::join_all;
use serde_json::{Map, Value, json};

use super::event::Event;
use super::request::{Execute, KernelConfig, KernelId, Reply, Request, RunResult};
use super::{Agent, AgentError, recovery};
use crate::kernel::KernelHandle;
use crate::kernel::execute::execute;
use crate::kernel::files;
use crate::kernel::live::Live;
use crate::kernel::parts::ENGINE_LIMIT;
use crate::kernel::runner::run::Flush;
use crate::runtime::RuntimeError;

/// Bytes of a container's log that are answered at most.
const LOG_LIMIT: usize = 16 * 1024 * 1024;

impl Agent {
    pub(super) async fn call(&self, request: Request) -> Result<Reply, AgentError> {
        match request {
            Request::Ping { message } => Ok(Reply::Text(message)),
            Request::PingKernel { kernel } | Request::RefreshIdle { kernel } => {
                // Refreshing an unknown kernel is not an error.
                let _ = self.used(&kernel);
                Ok(Reply::Done)
            }
            Request::CreateKernel { kernel, config } => self.create(kernel, config).await,
            Request::DestroyKernel { kernel, reason } => self.destroy(&kernel, &reason).await,
            Request::DestroyAll { reason } => {
                self.destroy_all(&reason).await;
                Ok(Reply::Done)
            }
            Request::RestartKernel { kernel, config } => match self.used(&kernel) {
                Ok(handle) => handle.restart(config).await,
                Err(_) => Err(AgentError::NoScratch(kernel)),
            },
            Request::InterruptKernel { kernel } => self.interrupt(&kernel).await,
            Request::Execute(call) => self.execute(*call).await,
            Request::GetCompletions {
                kernel,
                text,
                options,
            } => self.complete(&kernel, text, options).await,
            Request::StartService {
                kernel,
                service,
                options,
            } => self.start_service(&kernel, &service, options).await,
            Request::GetLogs { kernel } => self.logs(&kernel).await,
            Request::UploadFile {
                kernel,
                filename,
                data,
            } => {
                let live = self.used(&kernel)?.live().await?;
                files::upload(live, filename, data).await?;
                Ok(Reply::Done)
            }
            Request::DownloadFile { kernel, filepath } => {
                let live = self.used(&kernel)?.live().await?;
                files::download(live, filepath).await.map(Reply::Archive)
            }
            Request::ListFiles { kernel, path } => {
                let live = self.used(&kernel)?.live().await?;
                files::list(live, path).await.map(Reply::Files)
            }
        }
    }

    /// The kernel of this id, which is used now.
    fn used(&self, kernel: &KernelId) -> Result<KernelHandle, AgentError> {
        let handle = self.parts.registry.get(kernel);
        let handle = handle.ok_or_else(|| AgentError::UnknownKernel(kernel.clone()))?;
        handle.touch();
        Ok(handle)
    }

    async fn create(
        &self,
        kernel: KernelId,
        config: Box<KernelConfig>,
    ) -> Result<Reply, AgentError> {
        if self.parts.stop.is_cancelled() {
            let engine = "this agent";
            let source = "it is shutting down".into();
            return Err(RuntimeError::Unavailable { engine, source }.into());
        }
        KernelHandle::create(&self.parts, kernel, config).await
    }

    /// An unknown kernel counts as destroyed: managers repeat this call, and wait for the event.
    async fn destroy(&self, kernel: &KernelId, reason: &str) -> Result<Reply, AgentError> {
        if let Some(handle) = self.parts.registry.get(kernel) {
            return handle.destroy(reason).await.map(Reply::Destroyed);
        }
        recovery::discard(&self.parts, kernel).await;
        self.report_gone(kernel);
        Ok(Reply::Destroyed(None))
    }

    pub(super) async fn destroy_all(&self, reason: &str) {
        let kernels = self.parts.registry.all();
        let ended = join_all(kernels.iter().map(|kernel| kernel.destroy(reason))).await;
        for error in ended.into_iter().filter_map(Result::err) {
            tracing::error!("{error}");
        }
    }

    fn report_gone(&self, kernel: &KernelId) {
        self.parts.emit(Event::KernelTerminated {
            kernel: kernel.clone(),
            reason: "self-terminated".to_owned(),
            stats: None,
        });
    }

    async fn interrupt(&self, kernel: &KernelId) -> Result<Reply, AgentError> {
        let act =
            |live: Arc<Live>| async move { live.runner.interrupt().await.map(|()| Reply::Done) };
        self.used(kernel)?.with_live(act).await
    }

    async fn execute(&self, call: Execute) -> Result<Reply, AgentError> {
        let flush = call.flush_timeout.map_or(Flush::AtMark, Flush::After);
        self.run(call, flush).await
    }

    /// Runs code and comes back as soon as there is any output, or a mark; `flush_timeout` is not looked at.
    /// `None` when the kernel ended meanwhile.
    ///
    /// # Errors
    /// As [`Request::Execute`].
    pub async fn run_streaming(&self, call: Execute) -> Result<Option<RunResult>, AgentError> {
        match self.run(call, Flush::AsProduced).await? {
            Reply::Run(result) => Ok(Some(*result)),
            _ => Ok(None),
        }
    }

    async fn run(&self, call: Execute, flush: Flush) -> Result<Reply, AgentError> {
        let kernel = self.used(&call.kernel);
        let kernel = kernel.inspect_err(|_| self.report_gone(&call.kernel))?;
        let run = call
            .run
            .unwrap_or_else(|| uuid::Uuid::new_v4().simple().to_string());
        let act = |live: Arc<Live>| async move {
            let result = execute(&live, &run, call.mode, flush).await?;
            Ok(Reply::Run(Box::new(result)))
        };
        kernel.with_live(act).await
    }

    async fn complete(
        &self,
        kernel: &KernelId,
        text: String,
        options: Map<String, Value>,
    ) -> Result<Reply, AgentError> {
        let act = |live: Arc<Live>| async move {
            live.runner.complete(text, options).await.map(Reply::Json)
        };
        self.used(kernel)?.with_live(act).await
    }

    async fn start_service(
        &self,
        kernel: &KernelId,
        name: &str,
        options: Map<String, Value>,
    ) -> Result<Reply, AgentError> {
        let act = |live: Arc<Live>| async move {
            let service = live.ports.services.iter().find(|it| it.name == name);
            let Some(service) = service else {
                let answer = json!({"status": "failed", "error": "invalid service name"});
                return Ok(Reply::Json(answer));
            };
            let answer = live.runner.start_service(service, options).await;
            answer.map(Reply::Json)
        };
        self.used(kernel)?.with_live(act).await
    }

    async fn logs(&self, kernel: &KernelId) -> Result<Reply, AgentError> {
        let live = self.used(kernel)?.live().await?;
        let logs = self.parts.runtime.logs(&live.container, LOG_LIMIT);
        let bytes = match tokio::time::timeout(ENGINE_LIMIT, logs).await {
            Ok(bytes) => bytes?,
            Err(_) => return Err(AgentError::TimedOut(format!("log of kernel {kernel}"))),
        };
        let text = bytes.utf8_chunks().map(|chunk| chunk.valid()).collect();
        Ok(Reply::Logs(text))
    }
}
