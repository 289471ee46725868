//! Blobs in containerd's content store: read, written with resume, and held by a lease until something refers to them.

use std::collections::HashMap;
use std::fs::File;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use containerd_client::services::v1::{
    AbortRequest, AddResourceRequest, CreateRequest as LeaseRequest, DeleteRequest, Info,
    InfoRequest, ReadContentRequest, Resource, UpdateRequest, WriteAction, WriteContentRequest,
    WriteContentResponse,
};
use futures_util::Stream;
use prost_types::FieldMask;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;
use tonic::{Code, Response, Status, Streaming};

use super::client::{Answer, Client, QUICK, SLOW, absent_is_done};
use crate::image::layout::{MAX_DOCUMENT, digest_of};

/// When the garbage collector may forget a lease whose owner died.
const EXPIRY: Duration = Duration::from_secs(24 * 3600);
/// Pause before a blob that somebody else writes is asked for again.
const WAIT_FOR_OTHER: Duration = Duration::from_millis(200);

/// Labels of a blob.
pub(super) type Labels = HashMap<String, String>;

impl Client {
    /// A small blob; `None` when it is not there.
    pub async fn document(&self, digest: &str) -> Answer<Option<Vec<u8>>> {
        let request = self.request(ReadContentRequest {
            digest: digest.to_owned(),
            ..ReadContentRequest::default()
        });
        let mut client = self.content();
        let read = async {
            let mut stream = client.read(request).await?.into_inner();
            let mut bytes = Vec::new();
            while let Some(part) = stream.message().await? {
                bytes.extend_from_slice(&part.data);
                if bytes.len() as u64 > MAX_DOCUMENT {
                    return Err(Status::out_of_range(format!(
                        "blob {digest} is larger than 8 MiB"
                    )));
                }
            }
            Ok(Response::new(bytes))
        };
        absent_is_done(self.call(QUICK, read).await)
    }

    /// Writes a blob of any size into a file.
    pub async fn copy_blob(&self, digest: &str, file: File) -> Answer<()> {
        let request = self.request(ReadContentRequest {
            digest: digest.to_owned(),
            ..ReadContentRequest::default()
        });
        let mut client = self.content();
        let mut stream = self.call(QUICK, client.read(request)).await?;
        let mut file = tokio::fs::File::from_std(file);
        let broken = |error: std::io::Error| Status::internal(error.to_string());
        loop {
            let next = async { stream.message().await.map(Response::new) };
            match self.call(QUICK, next).await? {
                Some(part) => file.write_all(&part.data).await.map_err(broken)?,
                None => return file.flush().await.map_err(broken),
            }
        }
    }

    /// Makes a lease: what is made under it stays until it is given back.
    pub async fn lease(&self) -> Answer<String> {
        let expiry = prost_types::Timestamp::from(SystemTime::now() + EXPIRY).to_string();
        let request = self.request(LeaseRequest {
            id: format!("backendai-{}", uuid::Uuid::new_v4().simple()),
            labels: [("containerd.io/gc.expire".to_owned(), expiry)].into(),
        });
        let made = self.call(QUICK, self.leases().create(request)).await?;
        Ok(made.lease.unwrap_or_default().id)
    }

    /// Gives a lease back; what fails here is mended by its expiry.
    pub async fn give_back(&self, id: &str) {
        let request = self.request(DeleteRequest {
            id: id.to_owned(),
            sync: false,
        });
        if let Err(status) = self.call(QUICK, self.leases().delete(request)).await {
            tracing::debug!("giving lease {id} back: {}", status.message());
        }
    }

    /// Puts something that may be there already under a lease.
    pub async fn hold(&self, lease: &str, kind: &str, id: &str) -> Answer<()> {
        let request = self.request(AddResourceRequest {
            id: lease.to_owned(),
            resource: Some(Resource {
                id: id.to_owned(),
                r#type: kind.to_owned(),
            }),
        });
        self.call(QUICK, self.leases().add_resource(request)).await
    }

    /// Whether the blob is there; if so, the lease holds it.
    pub async fn holds_blob(&self, lease: &str, digest: &str) -> Answer<bool> {
        self.hold(lease, "content", digest).await?;
        let request = self.request(InfoRequest {
            digest: digest.to_owned(),
        });
        let info = self.call(QUICK, self.content().info(request)).await;
        Ok(absent_is_done(info)?.is_some())
    }

    /// Sets labels of a blob.
    pub async fn label(&self, digest: &str, labels: Labels) -> Answer<()> {
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let request = self.request(UpdateRequest {
            info: Some(Info {
                digest: digest.to_owned(),
                labels,
                ..Info::default()
            }),
            update_mask: Some(FieldMask { paths }),
        });
        self.call(QUICK, self.content().update(request))
            .await
            .map(drop)
    }

    /// Writes a small blob with its labels; gives its digest.
    pub async fn put_document(&self, lease: &str, bytes: &[u8], labels: Labels) -> Answer<String> {
        let digest = digest_of(bytes);
        if !self.holds_blob(lease, &digest).await? {
            let size = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
            if let Some(mut upload) = Upload::open(self, lease, &digest, size).await? {
                let written = usize::try_from(upload.offset())
                    .unwrap_or(0)
                    .min(bytes.len());
                upload.write(bytes[written..].to_vec()).await?;
                upload.commit().await?;
            }
        }
        if !labels.is_empty() {
            self.label(&digest, labels).await?;
        }
        Ok(digest)
    }

    /// Forgets what was written of a blob.
    pub async fn abort(&self, digest: &str) {
        let request = self.request(AbortRequest {
            r#ref: reference(digest),
        });
        if let Err(status) = absent_is_done(self.call(QUICK, self.content().abort(request)).await) {
            tracing::debug!("forgetting the rest of {digest}: {}", status.message());
        }
    }
}

fn reference(digest: &str) -> String {
    format!("backendai-{digest}")
}

/// What is sent of a blob.
struct Requests(mpsc::Receiver<WriteContentRequest>);

impl Stream for Requests {
    type Item = WriteContentRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}

/// A blob that is being written, by us alone.
pub(super) struct Upload<'a> {
    client: &'a Client,
    requests: mpsc::Sender<WriteContentRequest>,
    answers: Streaming<WriteContentResponse>,
    /// What every request says.
    base: WriteContentRequest,
}

impl<'a> Upload<'a> {
    /// Begins, or goes on where somebody left off; `None` when the blob is there. Waits while another one writes it.
    pub async fn open(
        client: &'a Client,
        lease: &str,
        digest: &str,
        size: i64,
    ) -> Answer<Option<Self>> {
        loop {
            match Self::try_open(client, lease, digest, size).await {
                Ok(upload) => return Ok(Some(upload)),
                Err(status) if status.code() == Code::AlreadyExists => return Ok(None),
                Err(status) if status.message().contains("locked") => {
                    tokio::time::sleep(WAIT_FOR_OTHER).await;
                }
                Err(status) => return Err(status),
            }
        }
    }

    async fn try_open(client: &'a Client, lease: &str, digest: &str, size: i64) -> Answer<Self> {
        let base = WriteContentRequest {
            r#ref: reference(digest),
            total: size,
            expected: digest.to_owned(),
            ..WriteContentRequest::default()
        };
        let (requests, receiver) = mpsc::channel(1);
        let first = WriteContentRequest {
            action: WriteAction::Stat.into(),
            ..base.clone()
        };
        requests.try_send(first).expect("it is empty");
        let mut content = client.content();
        let opened = content.write(client.leased(lease, Requests(receiver)));
        let answers = client.call(QUICK, opened).await?;
        let mut upload = Self {
            client,
            requests,
            answers,
            base,
        };
        upload.base.offset = upload.answer(QUICK).await?;
        Ok(upload)
    }

    /// How many bytes are there.
    pub fn offset(&self) -> u64 {
        u64::try_from(self.base.offset).unwrap_or(0)
    }

    /// Appends bytes.
    pub async fn write(&mut self, data: Vec<u8>) -> Answer<()> {
        if data.is_empty() {
            return Ok(());
        }
        let end = self.base.offset + i64::try_from(data.len()).unwrap_or(i64::MAX);
        let action = WriteAction::Write.into();
        self.send(WriteContentRequest {
            action,
            data,
            ..self.base.clone()
        })
        .await?;
        self.answer(QUICK).await?;
        self.base.offset = end;
        Ok(())
    }

    /// Ends it; containerd compares size and digest.
    pub async fn commit(mut self) -> Answer<()> {
        let action = WriteAction::Commit.into();
        self.send(WriteContentRequest {
            action,
            ..self.base.clone()
        })
        .await?;
        match self.answer(SLOW).await {
            Err(status) if status.code() == Code::AlreadyExists => Ok(()),
            other => other.map(drop),
        }
    }

    /// A stream that has ended tells why in its next answer.
    async fn send(&mut self, request: WriteContentRequest) -> Answer<()> {
        let _ = self.requests.send(request).await;
        Ok(())
    }

    async fn answer(&mut self, limit: Duration) -> Answer<i64> {
        let answers = &mut self.answers;
        let next = async {
            let answer = answers.message().await?;
            let ended = || Status::unavailable("the daemon ended the transfer");
            answer.map(Response::new).ok_or_else(ended)
        };
        Ok(self.client.call(limit, next).await?.offset)
    }
}
