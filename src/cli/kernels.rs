//! The kernels on this node as an operator sees them: the engine's containers, what the kernel's folder and `/proc` add
//! to them, their names, and their JSON. No agent need run.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::{CommonArgs, run};
use crate::agent::request::KernelId;
use crate::kernel::mark;
use crate::resource::slot::{SlotAmounts, short_size};
use crate::resource::spec::ResourceSpec;
use crate::runtime::{
    ContainerInfo, ContainerRuntime, ContainerState, ImageStore, LABEL_AGENT_ID, LABEL_KERNEL_ID,
    Result,
};
use crate::sys::proc::Proc;

/// How many characters of an id tables show.
const SHORT: usize = 12;
/// What names of kernels' containers begin with, those of the Python agent too.
const NAME_PREFIX: &str = "kernel.";

/// One container of this node, and what is known of its kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Kernel {
    /// What the engine knows.
    pub container: ContainerInfo,
    /// The kernel's id; that of a container which does not tell is empty.
    pub id: String,
    /// Name of its image, or its id where it has none.
    pub image: String,
    /// The kernel's folders, where they are found.
    pub scratch: Option<PathBuf>,
    /// Id of its agent: the container tells the one that made it, and the folder the one that has taken it over from the
    /// Python agent; empty where neither does.
    pub agent: String,
    /// What the kernel was given, where its folder tells.
    pub slots: Option<SlotAmounts>,
    /// When the container's first process began, in seconds since 1970, while it lives.
    pub started_at: Option<u64>,
}

/// Where what the engine does not know is looked for.
#[derive(Clone, Debug)]
pub struct Places {
    /// Folder of the kernels' scratch folders.
    pub scratch_root: PathBuf,
    /// Folder of `backendai-agent run`.
    pub runs: PathBuf,
    /// Processes.
    pub proc: Proc,
    /// Names of images by their ids: kernels are made by id.
    pub images: BTreeMap<String, String>,
}

/// No kernel, or more than one, goes by a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// None.
    #[error("no kernel or container is called {0}; `backendai-agent ps -a` lists them")]
    Unknown(String),
    /// Several.
    #[error("{name} could be any of these, give more of the id: {}", .candidates.join(", "))]
    Ambiguous {
        /// The name.
        name: String,
        /// Kernel and container of each.
        candidates: Vec<String>,
    },
}

impl Places {
    /// The places of this machine.
    pub async fn new(common: &CommonArgs, scratch_root: PathBuf, images: &dyn ImageStore) -> Self {
        // Without the names there are still the ids.
        let images = images.list().await.unwrap_or_default().into_iter();
        let named = images.filter_map(|image| Some((image.id, image.names.first()?.clone())));
        Self {
            scratch_root,
            runs: common.state_dir.join(run::FOLDER),
            proc: Proc::default(),
            images: named.collect(),
        }
    }

    fn scratch_of(&self, kernel: &str) -> Option<PathBuf> {
        // An id is a label's text: it must not lead elsewhere.
        let kernel = KernelId::parse(kernel).ok()?;
        let run = self.runs.join(kernel.as_str()).join(run::SCRATCH);
        let roots = [&self.scratch_root, &run];
        let mut folders = roots.map(|root| root.join(kernel.as_str())).into_iter();
        folders.find(|folder| folder.is_dir())
    }
}

impl Kernel {
    /// Adds to what the engine knows.
    #[must_use]
    pub fn new(container: ContainerInfo, places: &Places) -> Self {
        let id = kernel_id(&container);
        let scratch = places.scratch_of(&id);
        let slots = scratch.as_ref().and_then(|folder| {
            let text = fs::read_to_string(folder.join("config/resource.txt")).ok()?;
            ResourceSpec::slots_of(&text)
        });
        Self {
            image: places
                .images
                .get(&container.image)
                .unwrap_or(&container.image)
                .clone(),
            agent: container
                .labels
                .get(LABEL_AGENT_ID)
                .cloned()
                .or_else(|| mark::agent_of(scratch.as_deref()?))
                .unwrap_or_default(),
            started_at: container.pid.and_then(|pid| places.proc.started_at(pid)),
            container,
            id,
            scratch,
            slots,
        }
    }

    /// Whether its program has not ended.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.container.state != ContainerState::Stopped
    }

    /// `created`, `running` or `exited`.
    #[must_use]
    pub fn state(&self) -> &'static str {
        match self.container.state {
            ContainerState::Created => "created",
            ContainerState::Running => "running",
            ContainerState::Stopped => "exited",
        }
    }

    /// The slots as tables show them: `cpu=1 mem=512m`.
    #[must_use]
    pub fn slots_text(&self) -> String {
        let slots = self.slots.iter().flat_map(SlotAmounts::iter);
        let text = slots.map(|(slot, amount)| match slot {
            "mem" => format!("{slot}={}", short_size(amount.value())),
            _ => format!("{slot}={}", amount.value().normalize()),
        });
        text.collect::<Vec<_>>().join(" ")
    }

    /// The fields of `ps --json`, which `inspect` has too.
    #[must_use]
    pub fn to_json(&self) -> Map<String, Value> {
        let it = &self.container;
        let ports: Vec<Value> = it
            .ports
            .iter()
            .map(|port| json!({ "host": port.host, "container": port.container }))
            .collect();
        let slots = self.slots.as_ref().map(|slots| {
            let slots = slots.iter();
            let slots =
                slots.map(|(slot, n)| (slot.to_owned(), n.value().normalize().to_string().into()));
            slots.collect::<Map<String, Value>>()
        });
        let fields = [
            ("kernel_id", json!(some(&self.id))),
            ("container_id", json!(it.id.0)),
            ("name", json!(it.name)),
            ("image", json!(self.image)),
            ("state", json!(self.state())),
            ("exit_code", json!(it.exit.map(|exit| exit.code))),
            ("oom_killed", json!(it.exit.map(|exit| exit.oom_killed))),
            ("pid", json!(it.pid)),
            ("started_at", json!(self.started_at)),
            ("address", json!(it.address)),
            ("ports", ports.into()),
            ("agent_id", json!(some(&self.agent))),
            ("slots", json!(slots)),
        ];
        let fields = fields.into_iter();
        fields
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    }
}

/// Every kernel of this node, dead or alive, the newest first as far as known.
///
/// # Errors
/// When the engine does not answer.
pub async fn all(runtime: &dyn ContainerRuntime, places: &Places) -> Result<Vec<Kernel>> {
    let containers = runtime.list().await?.into_iter();
    let mut kernels: Vec<Kernel> = containers.map(|it| Kernel::new(it, places)).collect();
    kernels.sort_by_key(|kernel| std::cmp::Reverse(kernel.started_at));
    Ok(kernels)
}

/// The container that a name means: a kernel's id, a container's id or name, or the beginning of an id.
///
/// # Errors
/// When the engine does not answer; [`NameError`].
pub async fn find(runtime: &dyn ContainerRuntime, name: &str) -> anyhow::Result<ContainerInfo> {
    Ok(choose(runtime.list().await?, name)?)
}

/// [`find`] among these.
///
/// # Errors
/// [`NameError`].
pub fn choose(containers: Vec<ContainerInfo>, name: &str) -> Result<ContainerInfo, NameError> {
    let whole = |it: &ContainerInfo| it.id.0 == name || it.name == name || kernel_id(it) == name;
    let begins = |it: &ContainerInfo| {
        !name.is_empty() && (it.id.0.starts_with(name) || kernel_id(it).starts_with(name))
    };
    // A whole name wins over a beginning of others.
    let (exact, others): (Vec<_>, Vec<_>) = containers.into_iter().partition(whole);
    let mut found = if exact.is_empty() {
        others.into_iter().filter(begins).collect()
    } else {
        exact
    };
    // A kernel that is restarted has for a while a dead container too.
    let alive = |it: &ContainerInfo| it.state != ContainerState::Stopped;
    let same = found.iter().all(|it| kernel_id(it) == kernel_id(&found[0]));
    if same && found.iter().filter(|it| alive(it)).count() == 1 {
        found.retain(alive);
    }
    match found.len() {
        0 => Err(NameError::Unknown(name.to_owned())),
        1 => Ok(found.remove(0)),
        _ => Err(NameError::Ambiguous {
            name: name.to_owned(),
            candidates: found.iter().map(candidate).collect(),
        }),
    }
}

fn candidate(container: &ContainerInfo) -> String {
    let (kernel, id) = (kernel_id(container), short(&container.id.0));
    if kernel.is_empty() {
        format!("container {id}")
    } else {
        format!("kernel {kernel} (container {id})")
    }
}

/// The kernel's id by its label; containers of the Python agent have it in their name only.
fn kernel_id(container: &ContainerInfo) -> String {
    if let Some(id) = container.labels.get(LABEL_KERNEL_ID) {
        return id.clone();
    }
    let named = container.name.strip_prefix(NAME_PREFIX);
    let id = named.and_then(|rest| rest.rsplit_once('.'));
    id.map(|(_, id)| id.to_owned()).unwrap_or_default()
}

/// The beginning of an id, as tables show it.
#[must_use]
pub fn short(id: &str) -> &str {
    id.get(..SHORT).unwrap_or(id)
}

/// How long ago something was, in its largest unit: `50s`, `3m`, `5h`, `2d`.
#[must_use]
pub fn age(started_at: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let seconds = now.map_or(0, |now| now.as_secs().saturating_sub(started_at));
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

fn some(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::{ContainerId, LabelMap};

    fn container(id: &str, kernel: &str, state: ContainerState) -> ContainerInfo {
        ContainerInfo {
            id: ContainerId(id.to_owned()),
            name: format!("kernel.python.{kernel}"),
            image: "python:3".to_owned(),
            state,
            labels: LabelMap::from([(LABEL_KERNEL_ID.to_owned(), kernel.to_owned())]),
            pid: None,
            cgroup: None,
            address: None,
            ports: Vec::new(),
            exit: None,
        }
    }

    fn running(id: &str, kernel: &str) -> ContainerInfo {
        container(id, kernel, ContainerState::Running)
    }

    fn chosen(all: &[ContainerInfo], name: &str) -> Result<String, NameError> {
        choose(all.to_vec(), name).map(|it| it.id.0)
    }

    #[test]
    fn kernels_and_containers_go_by_their_ids_names_and_beginnings() {
        let all = [running("aaa1", "k-one"), running("bbb2", "k-two")];
        for name in ["aaa1", "a", "k-one", "k-o", "kernel.python.k-one"] {
            assert_eq!(chosen(&all, name), Ok("aaa1".to_owned()), "{name}");
        }
    }

    #[test]
    fn an_unknown_name_is_named_with_the_remedy() {
        let error = chosen(&[running("aaa1", "k-one")], "nobody").expect_err("unknown");
        let text = error.to_string();
        assert!(text.contains("nobody") && text.contains("ps -a"), "{text}");
        assert!(chosen(&[running("aaa1", "k-one")], "").is_err());
    }

    #[test]
    fn a_beginning_of_several_lists_them() {
        let all = [running("aaa1", "k-one"), running("bbb2", "k-two")];
        let text = chosen(&all, "k-").expect_err("ambiguous").to_string();
        assert!(text.contains("k-one") && text.contains("k-two") && text.contains("bbb2"));
    }

    #[test]
    fn a_whole_id_wins_over_the_beginning_of_another() {
        let all = [running("aaa1", "k"), running("bbb2", "k-two")];
        assert_eq!(chosen(&all, "k"), Ok("aaa1".to_owned()));
    }

    #[test]
    fn of_a_restarted_kernel_the_living_container_is_meant() {
        let all = [
            container("aaa1", "k", ContainerState::Stopped),
            running("bbb2", "k"),
        ];
        assert_eq!(chosen(&all, "k"), Ok("bbb2".to_owned()));
        let all = [
            container("aaa1", "k1", ContainerState::Stopped),
            running("bbb2", "k2"),
        ];
        assert!(chosen(&all, "k").is_err(), "two kernels are two kernels");
    }

    #[test]
    fn a_container_of_the_python_agent_has_its_kernel_in_its_name() {
        let mut it = running("aaa1", "k-one");
        it.labels.clear();
        assert_eq!(kernel_id(&it), "k-one");
        it.name = "other".to_owned();
        assert_eq!(kernel_id(&it), "");
    }

    #[test]
    fn an_id_that_is_a_path_leads_nowhere() {
        let root = tempfile::tempdir().expect("a folder");
        let places = Places {
            scratch_root: root.path().join("scratch"),
            runs: root.path().join("runs"),
            proc: Proc::at(root.path()),
            images: BTreeMap::new(),
        };
        fs::create_dir_all(root.path().join("scratch/k/config")).expect("a folder");
        fs::create_dir_all(root.path().join("elsewhere/config")).expect("a folder");
        assert!(places.scratch_of("k").is_some());
        assert!(places.scratch_of("../elsewhere").is_none());
    }
}
