//! Blobs in containerd's content store: read, written with resume, and held by a lease until something refers to them.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use containerd_client::services::v1::{
    AbortRequest, AddResourceRequest, CreateRequest as LeaseRequest, DeleteRequest, Info,
    InfoRequest, ReadContentRequest, ReadContentResponse, Resource, UpdateRequest, WriteAction,
    WriteContentRequest, WriteContentResponse,
};
use prost_types::FieldMask;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;
use tonic::{Code, Response, Status, Streaming};

use super::calls::{QUICK, SLOW};
use super::client::{Answer, Client, absent_is_done, failed};
use crate::image::ImageError;
use crate::image::layout::{MAX_DOCUMENT, digest_of};
use crate::image::pull;

/// When the garbage collector may forget a lease whose owner died.
const EXPIRY: Duration = Duration::from_secs(24 * 3600);
/// Pause before a blob that somebody else writes is asked for again.
const WAIT_FOR_OTHER: Duration = Duration::from_millis(200);

/// Labels of a blob.
pub(super) type Labels = HashMap<String, String>;

impl Client {
    /// A small blob; `None` when it is not there.
    pub async fn document(&self, digest: &str) -> Answer<Option<Vec<u8>>> {
        let Some(mut stream) = absent_is_done(self.ask(read(digest)).await)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        while let Some(part) = self.part(&mut stream).await? {
            bytes.extend_from_slice(&part);
            if bytes.len() as u64 > MAX_DOCUMENT {
                let text = format!("blob {digest} is larger than 8 MiB");
                return Err(Status::out_of_range(text));
            }
        }
        Ok(Some(bytes))
    }

    /// Writes a blob of any size into a file.
    pub async fn copy_blob(&self, digest: &str, file: File) -> Answer<()> {
        let mut stream = self.ask(read(digest)).await?;
        let mut file = tokio::fs::File::from_std(file);
        let broken = |error: std::io::Error| Status::internal(error.to_string());
        while let Some(part) = self.part(&mut stream).await? {
            file.write_all(&part).await.map_err(broken)?;
        }
        file.flush().await.map_err(broken)
    }

    async fn part(&self, stream: &mut Streaming<ReadContentResponse>) -> Answer<Option<Vec<u8>>> {
        let next = async { stream.message().await.map(Response::new) };
        Ok(self.limited(QUICK, next).await?.map(|part| part.data))
    }

    /// Makes a lease: what is made under it stays until it is given back.
    pub async fn lease(&self) -> Answer<String> {
        let expiry = prost_types::Timestamp::from(SystemTime::now() + EXPIRY).to_string();
        let request = LeaseRequest {
            id: format!("backendai-{}", uuid::Uuid::new_v4().simple()),
            labels: [("containerd.io/gc.expire".to_owned(), expiry)].into(),
        };
        Ok(self.ask(request).await?.lease.unwrap_or_default().id)
    }

    /// Gives a lease back; what fails here is mended by its expiry.
    pub async fn give_back(&self, id: &str) {
        let request = DeleteRequest {
            id: id.to_owned(),
            sync: false,
        };
        if let Err(status) = self.ask(request).await {
            tracing::debug!("giving lease {id} back: {}", status.message());
        }
    }

    /// Has containerd collect what nothing refers to, and waits for it: a lease that goes is the way to ask for that.
    pub async fn collect(&self) -> Answer<()> {
        let id = self.lease().await?;
        self.ask(DeleteRequest { id, sync: true }).await
    }

    /// Puts something that may be there already under a lease.
    pub async fn hold(&self, lease: &str, kind: &str, id: &str) -> Answer<()> {
        let resource = Some(Resource {
            id: id.to_owned(),
            r#type: kind.to_owned(),
        });
        let id = lease.to_owned();
        self.ask(AddResourceRequest { id, resource }).await
    }

    /// Whether the blob is there; if so, the lease holds it.
    pub async fn holds_blob(&self, lease: &str, digest: &str) -> Answer<bool> {
        self.hold(lease, "content", digest).await?;
        let digest = digest.to_owned();
        let info = self.ask(InfoRequest { digest }).await;
        Ok(absent_is_done(info)?.is_some())
    }

    /// Sets labels of a blob.
    pub async fn label(&self, digest: &str, labels: Labels) -> Answer<()> {
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let request = UpdateRequest {
            info: Some(Info {
                digest: digest.to_owned(),
                labels,
                ..Info::default()
            }),
            update_mask: Some(FieldMask { paths }),
        };
        self.ask(request).await.map(drop)
    }

    /// Forgets what was written of a blob.
    pub async fn abort(&self, digest: &str) {
        let r#ref = reference(digest);
        if let Err(status) = absent_is_done(self.ask(AbortRequest { r#ref }).await) {
            tracing::debug!("forgetting the rest of {digest}: {}", status.message());
        }
    }
}

fn read(digest: &str) -> ReadContentRequest {
    ReadContentRequest {
        digest: digest.to_owned(),
        ..ReadContentRequest::default()
    }
}

fn reference(digest: &str) -> String {
    format!("backendai-{digest}")
}

/// Requests and answers of one transfer.
type Both = (
    mpsc::Sender<WriteContentRequest>,
    Streaming<WriteContentResponse>,
);

/// A blob that is being written, by us alone.
pub(super) struct Upload {
    client: Arc<Client>,
    lease: String,
    /// What it is called in messages.
    what: String,
    /// What every request says.
    base: WriteContentRequest,
    stream: Both,
}

impl Upload {
    /// Begins, or goes on where somebody left off; `None` when the blob is there. Waits while another one writes it.
    pub async fn open(
        client: &Arc<Client>,
        lease: &str,
        what: &str,
        digest: &str,
        size: u64,
    ) -> Answer<Option<Self>> {
        let base = WriteContentRequest {
            r#ref: reference(digest),
            total: i64::try_from(size).unwrap_or(i64::MAX),
            expected: digest.to_owned(),
            ..WriteContentRequest::default()
        };
        loop {
            match Self::stream(client, lease, &base).await {
                Ok((stream, offset)) => {
                    return Ok(Some(Self {
                        client: Arc::clone(client),
                        lease: lease.to_owned(),
                        what: what.to_owned(),
                        base: WriteContentRequest { offset, ..base },
                        stream,
                    }));
                }
                Err(status) if status.code() == Code::AlreadyExists => return Ok(None),
                Err(status) if status.message().contains("locked") => {
                    tokio::time::sleep(WAIT_FOR_OTHER).await;
                }
                Err(status) => return Err(status),
            }
        }
    }

    async fn stream(
        client: &Client,
        lease: &str,
        base: &WriteContentRequest,
    ) -> Answer<(Both, i64)> {
        let (requests, mut sent) = mpsc::channel(1);
        let first = WriteContentRequest {
            action: WriteAction::Stat.into(),
            ..base.clone()
        };
        requests.try_send(first).expect("it is empty");
        let mut content = client.content();
        let stream = futures_util::stream::poll_fn(move |cx| sent.poll_recv(cx));
        let opened = content.write(client.leased(lease, stream));
        let mut answers = client.limited(QUICK, Box::pin(opened)).await?;
        let offset = answer(client, &mut answers, QUICK).await?;
        Ok(((requests, answers), offset))
    }

    async fn send(&mut self, action: WriteAction, data: Vec<u8>, limit: Duration) -> Answer<i64> {
        let request = WriteContentRequest {
            action: action.into(),
            data,
            ..self.base.clone()
        };
        // A stream that has ended tells why in its next answer.
        let _ = self.stream.0.send(request).await;
        answer(&self.client, &mut self.stream.1, limit).await
    }
}

async fn answer(
    client: &Client,
    answers: &mut Streaming<WriteContentResponse>,
    limit: Duration,
) -> Answer<i64> {
    let next = async {
        let answer = answers.message().await?;
        let ended = || Status::unavailable("the daemon ended the transfer");
        answer.map(Response::new).ok_or_else(ended)
    };
    Ok(client.limited(limit, next).await?.offset)
}

#[async_trait]
impl pull::Upload for Upload {
    fn offset(&self) -> u64 {
        u64::try_from(self.base.offset).unwrap_or(0)
    }

    async fn write(&mut self, piece: &[u8]) -> Result<(), ImageError> {
        if piece.is_empty() {
            return Ok(());
        }
        let written = self.send(WriteAction::Write, piece.to_vec(), QUICK).await;
        written.map_err(failed(format!("storing {}", self.what)))?;
        self.base.offset += i64::try_from(piece.len()).unwrap_or(i64::MAX);
        Ok(())
    }

    async fn rewind(&mut self) -> Result<(), ImageError> {
        // The daemon lets go of it when the stream has ended.
        self.stream.0 = mpsc::channel(1).0;
        while let Ok(Some(_)) = self.stream.1.message().await {}
        self.client.abort(&self.base.expected).await;
        self.base.offset = 0;
        let again = Self::stream(&self.client, &self.lease, &self.base).await;
        let (stream, offset) = again.map_err(failed(format!("storing {}", self.what)))?;
        (self.stream, self.base.offset) = (stream, offset);
        Ok(())
    }

    /// containerd compares size and digest.
    async fn finish(mut self) -> Result<(), ImageError> {
        match self.send(WriteAction::Commit, Vec::new(), SLOW).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => Ok(()),
            Err(status) => Err(wrong_digest(&self.what, &self.base.expected, status)),
        }
    }
}

/// What containerd found in place of a digest is in its words.
fn wrong_digest(what: &str, expected: &str, status: Status) -> ImageError {
    let text = status.message();
    if status.code() != Code::FailedPrecondition {
        return failed(format!("storing {what}"))(status).into();
    }
    let found = text.split(|c: char| c == ',' || c.is_whitespace());
    let mut found = found.filter(|word| word.starts_with("sha256:") && *word != expected);
    ImageError::WrongDigest {
        what: what.to_owned(),
        expected: expected.to_owned(),
        found: found.next().unwrap_or("another one").to_owned(),
    }
}

/// Writes a small blob with its labels; gives its digest.
pub(super) async fn put_document(
    client: &Arc<Client>,
    lease: &str,
    bytes: &[u8],
    labels: Labels,
) -> Result<String, ImageError> {
    use pull::Upload as _;
    let digest = digest_of(bytes);
    let what = format!("blob {digest}");
    let failed = || failed(format!("storing {what}"));
    if !client.holds_blob(lease, &digest).await.map_err(failed())? {
        let upload = Upload::open(client, lease, &what, &digest, bytes.len() as u64).await;
        if let Some(mut upload) = upload.map_err(failed())? {
            let written = usize::try_from(upload.offset()).unwrap_or(0);
            upload
                .write(bytes.get(written..).unwrap_or_default())
                .await?;
            upload.finish().await?;
        }
    }
    if !labels.is_empty() {
        client.label(&digest, labels).await.map_err(failed())?;
    }
    Ok(digest)
}
