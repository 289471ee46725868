//! A snapshotter that is a program beside containerd, as stargz and nydus are: overlays in a folder of its own, behind
//! containerd's service for snapshots. Layers that it takes it fetches itself, by the labels that it is told.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::thread::JoinHandle;

use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, Info, Kind, ListSnapshotsRequest, ListSnapshotsResponse, MountsRequest,
    MountsResponse, PrepareSnapshotRequest, PrepareSnapshotResponse, RemoveSnapshotRequest,
    StatSnapshotRequest, StatSnapshotResponse, UpdateSnapshotRequest, UpdateSnapshotResponse,
    UsageRequest, UsageResponse, ViewSnapshotRequest, ViewSnapshotResponse,
};
use containerd_client::types::Mount;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference, RegistryOperation};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::Grpc;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

/// What containerd calls it.
pub const NAME: &str = "elsewhere";
/// Names the layer that the snapshot is for.
const REF: &str = "containerd.io/snapshot.ref";

/// The program.
pub struct Snapshotter {
    folder: TempDir,
    state: Arc<State>,
    serving: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Snapshotter {
    /// Takes the layers with these digests by itself; serves from a thread of its own, in this thread's network.
    pub fn start(takes: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let state = State {
            folder: folder.path().to_owned(),
            takes: takes.iter().map(|&digest| digest.to_owned()).collect(),
            inner: Mutex::default(),
        };
        let mut snapshotter = Self {
            folder,
            state: Arc::new(state),
            serving: None,
        };
        snapshotter.start_again();
        snapshotter
    }

    /// How a containerd's script is told of it.
    pub fn option(&self) -> String {
        format!("{NAME}={}", self.socket().display())
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("snapshotter.sock")
    }

    /// Goes away, and leaves no socket.
    pub fn stop(&mut self) {
        if let Some((stop, thread)) = self.serving.take() {
            drop(stop);
            thread.join().expect("it ends in peace");
            fs::remove_file(self.socket()).expect("its socket");
        }
    }

    /// Is there again, with all that it had.
    pub fn start_again(&mut self) {
        let listener = std::os::unix::net::UnixListener::bind(self.socket()).expect("a socket");
        listener.set_nonblocking(true).expect("a socket");
        let (stop, stopped) = oneshot::channel();
        let service = Answers(Arc::clone(&self.state));
        let serve = move || {
            let runtime = tokio::runtime::Runtime::new().expect("a runtime");
            runtime.block_on(async move {
                let listener = UnixListener::from_std(listener).expect("a socket");
                let incoming = stream::unfold(listener, |listener| async {
                    let connection = listener.accept().await.map(|(stream, _)| stream);
                    Some((connection, listener))
                });
                let server = tonic::transport::Server::builder();
                tokio::select! {
                    served = server.serve_with_incoming(service, incoming) => served.expect("it serves"),
                    _ = stopped => {}
                }
            });
        };
        self.serving = Some((stop, std::thread::spawn(serve)));
    }

    /// The labels of each layer that it was asked to take.
    pub fn asked(&self) -> Vec<HashMap<String, String>> {
        self.state.inner.lock().expect("state").asked.clone()
    }

    /// The labels of the kept snapshot for a layer that it was asked for.
    pub fn kept(&self, layer: &str) -> Option<HashMap<String, String>> {
        let inner = self.state.inner.lock().expect("state");
        let mut infos = inner.snapshots.values().map(|it| &it.info);
        let kept = infos.find(|info| {
            info.kind == Kind::Committed as i32
                && info.labels.get(&cri("layer-digest")).map(String::as_str) == Some(layer)
        });
        kept.map(|info| info.labels.clone())
    }

    /// Names of its snapshots.
    pub fn names(&self) -> Vec<String> {
        let inner = self.state.inner.lock().expect("state");
        inner.snapshots.keys().cloned().collect()
    }
}

impl Drop for Snapshotter {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A label in the names of containerd's CRI plugin.
pub fn cri(name: &str) -> String {
    format!("containerd.io/snapshot/cri.{name}")
}

struct State {
    folder: PathBuf,
    takes: Vec<String>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    snapshots: BTreeMap<String, Snapshot>,
    made: usize,
    asked: Vec<HashMap<String, String>>,
}

#[derive(Clone)]
struct Snapshot {
    info: Info,
    folder: PathBuf,
}

type Answer<T> = Result<T, Status>;

impl Inner {
    fn get(&mut self, name: &str) -> Answer<&mut Snapshot> {
        let found = self.snapshots.get_mut(name);
        found.ok_or_else(|| Status::not_found(format!("snapshot {name} does not exist")))
    }

    fn add(&mut self, state: &State, info: Info) -> Answer<Vec<Mount>> {
        if self.snapshots.contains_key(&info.name) {
            return Err(Status::already_exists(info.name));
        }
        self.made += 1;
        let folder = state.folder.join(self.made.to_string());
        for part in ["fs", "work"] {
            fs::create_dir_all(folder.join(part))?;
        }
        let name = info.name.clone();
        self.snapshots
            .insert(name.clone(), Snapshot { info, folder });
        self.mounts(&name)
    }

    fn mounts(&mut self, name: &str) -> Answer<Vec<Mount>> {
        let Snapshot { info, folder } = self.get(name)?.clone();
        let mut lowers = Vec::new();
        let mut parent = info.parent;
        while !parent.is_empty() {
            let below = self.get(&parent)?;
            lowers.push(below.folder.join("fs").display().to_string());
            parent = below.info.parent.clone();
        }
        let mount = |kind: &str, source: String, options: Vec<String>| Mount {
            r#type: kind.to_owned(),
            source,
            options,
            ..Mount::default()
        };
        let own = folder.join("fs").display().to_string();
        let lower = format!("lowerdir={}", lowers.join(":"));
        let (ro, rw) = ("ro".to_owned(), "rw".to_owned());
        let bind = "rbind".to_owned();
        let only = match (info.kind == Kind::View as i32, lowers.len()) {
            (true, 0) => mount("bind", own, vec![ro, bind]),
            (true, 1) => mount("bind", lowers.remove(0), vec![ro, bind]),
            (true, _) => mount("overlay", "overlay".to_owned(), vec![lower]),
            (false, 0) => mount("bind", own, vec![rw, bind]),
            (false, _) => {
                let work = format!("workdir={}", folder.join("work").display());
                let options = vec![work, format!("upperdir={own}"), lower];
                mount("overlay", "overlay".to_owned(), options)
            }
        };
        Ok(vec![only])
    }

    fn commit(&mut self, key: &str, name: String, labels: HashMap<String, String>) -> Answer<()> {
        if self.snapshots.contains_key(&name) {
            return Err(Status::already_exists(name));
        }
        self.get(key)?;
        let mut snapshot = self.snapshots.remove(key).expect("it is there");
        snapshot.info.kind = Kind::Committed as i32;
        // As containerd's own: what it was prepared with does not stay.
        snapshot.info.labels = labels;
        snapshot.info.name.clone_from(&name);
        self.snapshots.insert(name, snapshot);
        Ok(())
    }
}

impl State {
    fn locked<T>(&self, work: impl FnOnce(&mut Inner) -> Answer<T>) -> Answer<T> {
        work(&mut self.inner.lock().expect("state"))
    }

    async fn prepare(
        self: Arc<Self>,
        asked: PrepareSnapshotRequest,
    ) -> Answer<PrepareSnapshotResponse> {
        let PrepareSnapshotRequest {
            key,
            parent,
            labels,
            ..
        } = asked;
        let info = info(Kind::Active, &key, parent, labels.clone());
        let mounts = self.locked(|inner| inner.add(&self, info))?;
        let Some(target) = labels.get(REF) else {
            return Ok(PrepareSnapshotResponse { mounts });
        };
        self.locked(|inner| {
            inner.asked.push(labels.clone());
            Ok(())
        })?;
        let layer = labels.get(&cri("layer-digest")).cloned();
        if !layer.is_some_and(|layer| self.takes.contains(&layer)) {
            return Ok(PrepareSnapshotResponse { mounts });
        }
        let folder = self.locked(|inner| Ok(inner.get(&key)?.folder.clone()))?;
        fetch(&labels, folder.join("fs")).await?;
        let text = format!("target snapshot {target}: already exists");
        self.locked(|inner| inner.commit(&key, target.clone(), labels.clone()))?;
        Err(Status::already_exists(text))
    }

    async fn view(self: Arc<Self>, asked: ViewSnapshotRequest) -> Answer<ViewSnapshotResponse> {
        let info = info(Kind::View, &asked.key, asked.parent, asked.labels);
        let mounts = self.locked(|inner| inner.add(&self, info))?;
        Ok(ViewSnapshotResponse { mounts })
    }

    async fn mounts(self: Arc<Self>, asked: MountsRequest) -> Answer<MountsResponse> {
        let mounts = self.locked(|inner| inner.mounts(&asked.key))?;
        Ok(MountsResponse { mounts })
    }

    async fn commit(self: Arc<Self>, asked: CommitSnapshotRequest) -> Answer<()> {
        self.locked(|inner| inner.commit(&asked.key, asked.name, asked.labels))
    }

    async fn remove(self: Arc<Self>, asked: RemoveSnapshotRequest) -> Answer<()> {
        self.locked(|inner| {
            inner.get(&asked.key)?;
            let mut infos = inner.snapshots.values().map(|it| &it.info);
            if infos.any(|info| info.parent == asked.key) {
                return Err(Status::failed_precondition("it has children"));
            }
            let removed = inner.snapshots.remove(&asked.key).expect("it is there");
            Ok(fs::remove_dir_all(removed.folder)?)
        })
    }

    async fn stat(self: Arc<Self>, asked: StatSnapshotRequest) -> Answer<StatSnapshotResponse> {
        let info = self.locked(|inner| Ok(inner.get(&asked.key)?.info.clone()))?;
        Ok(StatSnapshotResponse { info: Some(info) })
    }

    async fn update(
        self: Arc<Self>,
        asked: UpdateSnapshotRequest,
    ) -> Answer<UpdateSnapshotResponse> {
        let wanted = asked.info.unwrap_or_default();
        let info = self.locked(|inner| {
            let info = &mut inner.get(&wanted.name)?.info;
            info.labels.extend(wanted.labels);
            Ok(info.clone())
        })?;
        Ok(UpdateSnapshotResponse { info: Some(info) })
    }

    async fn usage(self: Arc<Self>, asked: UsageRequest) -> Answer<UsageResponse> {
        self.locked(|inner| inner.get(&asked.key).map(drop))?;
        Ok(UsageResponse { size: 1, inodes: 1 })
    }

    async fn list(
        self: Arc<Self>,
        asked: ListSnapshotsRequest,
    ) -> Answer<BoxStream<'static, Answer<ListSnapshotsResponse>>> {
        let filters = &asked.filters;
        let info = self.locked(|inner| {
            let infos = inner.snapshots.values().map(|it| it.info.clone());
            let wanted =
                |info: &Info| filters.is_empty() || filters.iter().any(|it| fits(info, it));
            Ok(infos.filter(wanted).collect())
        })?;
        Ok(stream::iter([Ok(ListSnapshotsResponse { info })]).boxed())
    }
}

fn info(kind: Kind, name: &str, parent: String, labels: HashMap<String, String>) -> Info {
    Info {
        name: name.to_owned(),
        parent,
        kind: kind as i32,
        labels,
        ..Info::default()
    }
}

/// Of containerd's filters those that it sends: `labels."name"==value,parent=="name"`.
fn fits(info: &Info, filter: &str) -> bool {
    filter.split(',').all(|part| {
        let (field, value) = part.split_once("==").expect("a comparison");
        let (field, value) = (field.replace('"', ""), value.replace('"', ""));
        match field.as_str() {
            "parent" => info.parent == value,
            "name" => info.name == value,
            _ => {
                let label = field.strip_prefix("labels.").expect("a label");
                info.labels.get(label) == Some(&value)
            }
        }
    })
}

/// Unpacks a layer of the registry, known by its labels alone. It may not take away anything of those below.
async fn fetch(labels: &HashMap<String, String>, into: PathBuf) -> Answer<()> {
    let broken = |error: &dyn std::fmt::Display| Status::internal(error.to_string());
    let image = labels.get(&cri("image-ref")).map(String::as_str);
    let layer = labels.get(&cri("layer-digest")).map(String::as_str);
    let image: Reference = image
        .unwrap_or_default()
        .parse()
        .map_err(|error| broken(&error))?;
    let client = Client::new(ClientConfig {
        protocol: ClientProtocol::Http,
        ..ClientConfig::default()
    });
    let login = client.auth(&image, &RegistryAuth::Anonymous, RegistryOperation::Pull);
    login.await.map_err(|error| broken(&error))?;
    let mut blob = Vec::new();
    let pulled = client.pull_blob(&image, layer.unwrap_or_default(), &mut blob);
    pulled.await.map_err(|error| broken(&error))?;
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(blob.as_slice()));
    archive.set_preserve_permissions(true);
    Ok(archive.unpack(into)?)
}

/// The service, as containerd's clients call it.
#[derive(Clone)]
struct Answers(Arc<State>);

impl Service<http::Request<Body>> for Answers {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let state = Arc::clone(&self.0);
        macro_rules! unary {
            ($method:path) => {
                Grpc::new(ProstCodec::default())
                    .unary(Method(state, $method), request)
                    .await
            };
        }
        Box::pin(async move {
            let path = request.uri().path().to_owned();
            Ok(match path.rsplit('/').next().unwrap_or_default() {
                "Prepare" => unary!(State::prepare),
                "View" => unary!(State::view),
                "Mounts" => unary!(State::mounts),
                "Commit" => unary!(State::commit),
                "Remove" => unary!(State::remove),
                "Stat" => unary!(State::stat),
                "Update" => unary!(State::update),
                "Usage" => unary!(State::usage),
                "List" => {
                    let call = Method(state, State::list);
                    let mut grpc = Grpc::new(ProstCodec::default());
                    grpc.server_streaming(call, request).await
                }
                // containerd does not ask for `Cleanup` before it is told of it.
                _ => Status::unimplemented(path).into_http(),
            })
        })
    }
}

/// A method of the service.
struct Method<F>(Arc<State>, F);

impl<Q, A, F, U> Service<Request<Q>> for Method<F>
where
    F: FnMut(Arc<State>, Q) -> U,
    U: Future<Output = Answer<A>> + Send + 'static,
{
    type Response = Response<A>;
    type Error = Status;
    type Future = BoxFuture<'static, Answer<Response<A>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Answer<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let answer = (self.1)(Arc::clone(&self.0), request.into_inner());
        Box::pin(async { answer.await.map(Response::new) })
    }
}
