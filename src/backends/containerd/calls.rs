//! The calls of containerd's API that we make: each request knows its service, its answer, and how long that may take.

use std::time::Duration;

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::namespaces_client::NamespacesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::{self as api, snapshots};
use futures_util::future::BoxFuture;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

/// Deadline of calls that read or write a record.
pub(super) const QUICK: Duration = Duration::from_secs(20);
/// Deadline of calls that run programs or move data.
pub(super) const SLOW: Duration = Duration::from_secs(300);
/// A list of containers holds their whole specs.
pub(super) const MOST: usize = 1 << 30;

/// A request of the API.
pub(super) trait Call: Sized + Send + 'static {
    /// What it is answered with.
    type Answer: Send + 'static;
    /// How long that may take.
    const LIMIT: Duration;

    /// Sends it. Boxed, as the futures of calls are large.
    fn send(
        channel: Channel,
        request: Request<Self>,
    ) -> BoxFuture<'static, Result<Response<Self::Answer>, Status>>;
}

macro_rules! calls {
    ($($client:ident { $($method:ident: $request:ty => $answer:ty, $limit:ident;)* })*) => {
        $($(impl Call for $request {
            type Answer = $answer;
            const LIMIT: Duration = $limit;

            fn send(
                channel: Channel,
                request: Request<Self>,
            ) -> BoxFuture<'static, Result<Response<Self::Answer>, Status>> {
                Box::pin(async move {
                    let client = $client::new(channel);
                    client.max_decoding_message_size(MOST).$method(request).await
                })
            }
        })*)*
    };
}

calls! {
    NamespacesClient {
        create: api::CreateNamespaceRequest => api::CreateNamespaceResponse, QUICK;
    }
    ContainersClient {
        get: api::GetContainerRequest => api::GetContainerResponse, QUICK;
        list: api::ListContainersRequest => api::ListContainersResponse, QUICK;
        create: api::CreateContainerRequest => api::CreateContainerResponse, QUICK;
        delete: api::DeleteContainerRequest => (), QUICK;
    }
    TasksClient {
        create: api::CreateTaskRequest => api::CreateTaskResponse, SLOW;
        start: api::StartRequest => api::StartResponse, SLOW;
        get: api::GetRequest => api::GetResponse, QUICK;
        list: api::ListTasksRequest => api::ListTasksResponse, QUICK;
        kill: api::KillRequest => (), SLOW;
        wait: api::WaitRequest => api::WaitResponse, QUICK;
        delete: api::DeleteTaskRequest => api::DeleteResponse, SLOW;
        exec: api::ExecProcessRequest => (), SLOW;
        delete_process: api::DeleteProcessRequest => api::DeleteResponse, SLOW;
    }
    ImagesClient {
        list: api::ListImagesRequest => api::ListImagesResponse, QUICK;
        create: api::CreateImageRequest => api::CreateImageResponse, QUICK;
        update: api::UpdateImageRequest => api::UpdateImageResponse, QUICK;
        delete: api::DeleteImageRequest => (), SLOW;
    }
    ContentClient {
        info: api::InfoRequest => api::InfoResponse, QUICK;
        update: api::UpdateRequest => api::UpdateResponse, QUICK;
        abort: api::AbortRequest => (), QUICK;
        read: api::ReadContentRequest => Streaming<api::ReadContentResponse>, QUICK;
    }
    LeasesClient {
        create: api::CreateRequest => api::CreateResponse, QUICK;
        delete: api::DeleteRequest => (), QUICK;
        add_resource: api::AddResourceRequest => (), QUICK;
    }
    SnapshotsClient {
        prepare: snapshots::PrepareSnapshotRequest => snapshots::PrepareSnapshotResponse, SLOW;
        commit: snapshots::CommitSnapshotRequest => (), SLOW;
        remove: snapshots::RemoveSnapshotRequest => (), SLOW;
        stat: snapshots::StatSnapshotRequest => snapshots::StatSnapshotResponse, QUICK;
        usage: snapshots::UsageRequest => snapshots::UsageResponse, QUICK;
    }
    DiffClient {
        apply: api::ApplyRequest => api::ApplyResponse, SLOW;
    }
}
